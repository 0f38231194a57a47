// The opcodes that stand for containers, names, and objects made with names.
#include <algorithm>
#include <string>

#include "unpickle/bounds.h"
#include "unpickle/interpreter.h"
#include "unpickle/reductions.h"
#include "unpickle/tensors.h"

namespace modelbroker::unpickle {
namespace {

// Objects of unknown classes may be lists, sets or dictionaries of their own kind.
bool takes_items(Kind target, Kind items) { return target == items || target == Kind::kObject; }

}  // namespace

Interpreter::Step Interpreter::container(Kind kind) { return push(heap_.add_list(kind, {})); }

Interpreter::Step Interpreter::container_from_mark(Kind kind) {
  MODELBROKER_ASSIGN(const std::vector<Id> items, pop_to_mark());
  if (kind == Kind::kDict && items.size() % 2 != 0) {
    return fail(ErrorCode::kDataLoss, "its pickle has a key without a value");
  }
  return push(heap_.add_list(kind, items));
}

Interpreter::Step Interpreter::tuple(unsigned count) {
  std::vector<Id> items(count);
  for (unsigned i = count; i-- > 0;) {
    MODELBROKER_ASSIGN(items[i], pop());
  }
  return push(heap_.add_list(Kind::kTuple, items));
}

Interpreter::Step Interpreter::add_items(Kind kind, bool many) {
  std::vector<Id> items;
  if (many) {
    MODELBROKER_ASSIGN(items, pop_to_mark());
  } else {
    items.resize(kind == Kind::kDict ? 2 : 1);
    for (std::size_t i = items.size(); i-- > 0;) {
      MODELBROKER_ASSIGN(items[i], pop());
    }
  }
  if (kind == Kind::kDict && items.size() % 2 != 0) {
    return fail(ErrorCode::kDataLoss, "its pickle has a key without a value");
  }
  MODELBROKER_ASSIGN(const Id target, top());
  if (!takes_items(heap_[target].kind, kind)) {
    return fail(ErrorCode::kDataLoss, "its pickle adds elements to " + std::string(to_string(heap_[target].kind)));
  }
  heap_.append(target, items);
  return {};
}

Interpreter::Step Interpreter::global(std::string_view module, std::string_view name) {
  MODELBROKER_ASSIGN(const NamedRole found, look_up(module, name));
  const std::string_view full = heap_.keep(std::string(module) + "." + std::string(name));
  if (found.role == Role::kPlaceholder && placeholders_.size() < kMaxPlaceholders) placeholders_.insert(full);
  return push(heap_.add({.kind = Kind::kName, .role = found.role, .text = full, .dtype = found.dtype}));
}

Interpreter::Step Interpreter::global_lines() {
  MODELBROKER_ASSIGN(const std::string_view module, line());
  MODELBROKER_ASSIGN(const std::string_view name, line());
  return global(module, name);
}

Interpreter::Step Interpreter::global_of_stack() {
  MODELBROKER_ASSIGN(const Id name, pop());
  MODELBROKER_ASSIGN(const Id module, pop());
  if (heap_[name].kind != Kind::kString || heap_[module].kind != Kind::kString) {
    return fail(ErrorCode::kDataLoss, "its pickle has a name that is not text");
  }
  return global(heap_[module].text, heap_[name].text);
}

Interpreter::Step Interpreter::instance_lines() {
  MODELBROKER_TRY(global_lines());
  MODELBROKER_ASSIGN(const Id name, pop());
  MODELBROKER_ASSIGN(const std::vector<Id> arguments, pop_to_mark());
  MODELBROKER_ASSIGN(const Id made, reduce(heap_, name, arguments));
  return push(made);
}

Interpreter::Step Interpreter::instance_of_mark() {
  MODELBROKER_ASSIGN(const std::vector<Id> items, pop_to_mark());
  if (items.empty()) return fail(ErrorCode::kDataLoss, "its pickle makes an object without a class");
  MODELBROKER_ASSIGN(const Id made, reduce(heap_, items.front(), std::span(items).subspan(1)));
  return push(made);
}

Interpreter::Step Interpreter::call(bool has_keywords) {
  Id keywords = heap_.none();
  if (has_keywords) {
    MODELBROKER_ASSIGN(keywords, pop());
  }
  MODELBROKER_ASSIGN(const Id arguments, pop());
  MODELBROKER_ASSIGN(const Id callable, pop());
  if (heap_[arguments].kind != Kind::kTuple) {
    return fail(ErrorCode::kDataLoss, "its pickle has arguments that are not a tuple");
  }
  // Copied, for what is made may grow the heap's lists.
  const auto given = heap_.children(arguments);
  std::vector<Id> items(given.begin(), given.end());
  if (has_keywords) items.push_back(keywords);
  MODELBROKER_ASSIGN(const Id made, reduce(heap_, callable, items));
  return push(made);
}

Interpreter::Step Interpreter::state() {
  MODELBROKER_ASSIGN(const Id given, pop());
  MODELBROKER_ASSIGN(const Id object, top());
  return set_state(heap_, object, given);
}

Interpreter::Step Interpreter::persistent_id() {
  MODELBROKER_ASSIGN(const Id id, pop());
  MODELBROKER_ASSIGN(const Storage storage, storage_of_persistent_id(heap_, id));
  return push(heap_.add_storage(storage));
}

}  // namespace modelbroker::unpickle
