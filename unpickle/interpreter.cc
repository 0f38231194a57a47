#include "unpickle/interpreter.h"

#include <array>
#include <charconv>
#include <limits>
#include <string>

#include "unpickle/bounds.h"
#include "unpickle/byte_source.h"

namespace modelbroker::unpickle {
namespace {

constexpr Id kNotMemoized = std::numeric_limits<Id>::max();

tl::unexpected<Error> too_many(std::string_view what) {
  return fail(ErrorCode::kUnimplemented, "its pickle has more " + std::string(what) + " than are read");
}

tl::unexpected<Error> refused(std::string_view what) {
  return fail(ErrorCode::kInvalidArgument,
              "its pickle wants " + std::string(what) + ", which weights do not need; nothing was run");
}

}  // namespace

struct Interpreter::Opcode {
  unsigned char code;
  Step (*step)(Interpreter&);
};

struct Interpreter::Table {
  std::array<Step (*)(Interpreter&), 256> steps{};
};

// clang-format off
const Interpreter::Table& Interpreter::table() {
  static constexpr Opcode kOpcodes[] = {
      {0x80, [](Interpreter& i) { return i.protocol(); }},
      {0x95, [](Interpreter& i) { return i.frame(); }},
      // literals
      {'N', [](Interpreter& i) { return i.push(i.heap_.none()); }},
      {0x88, [](Interpreter& i) { return i.push(i.heap_.boolean(true)); }},
      {0x89, [](Interpreter& i) { return i.push(i.heap_.boolean(false)); }},
      {'J', [](Interpreter& i) { return i.integer(4, true); }},
      {'K', [](Interpreter& i) { return i.integer(1, false); }},
      {'M', [](Interpreter& i) { return i.integer(2, false); }},
      {'I', [](Interpreter& i) { return i.integer_line(); }},
      {'L', [](Interpreter& i) { return i.integer_line(); }},
      {0x8a, [](Interpreter& i) { return i.long_bytes(1); }},
      {0x8b, [](Interpreter& i) { return i.long_bytes(4); }},
      {'F', [](Interpreter& i) { return i.real_line(); }},
      {'G', [](Interpreter& i) { return i.real(); }},
      {'S', [](Interpreter& i) { return i.quoted_line(); }},
      {'V', [](Interpreter& i) { return i.unicode_line(); }},
      {'T', [](Interpreter& i) { return i.text_of_python2(4); }},
      {'U', [](Interpreter& i) { return i.text_of_python2(1); }},
      {'X', [](Interpreter& i) { return i.text(Kind::kString, 4); }},
      {0x8c, [](Interpreter& i) { return i.text(Kind::kString, 1); }},
      {0x8d, [](Interpreter& i) { return i.text(Kind::kString, 8); }},
      {'B', [](Interpreter& i) { return i.text(Kind::kBytes, 4); }},
      {'C', [](Interpreter& i) { return i.text(Kind::kBytes, 1); }},
      {0x8e, [](Interpreter& i) { return i.text(Kind::kBytes, 8); }},
      {0x96, [](Interpreter& i) { return i.text(Kind::kBytes, 8); }},
      // containers
      {']', [](Interpreter& i) { return i.container(Kind::kList); }},
      {'}', [](Interpreter& i) { return i.container(Kind::kDict); }},
      {')', [](Interpreter& i) { return i.container(Kind::kTuple); }},
      {0x8f, [](Interpreter& i) { return i.container(Kind::kSet); }},
      {'l', [](Interpreter& i) { return i.container_from_mark(Kind::kList); }},
      {'d', [](Interpreter& i) { return i.container_from_mark(Kind::kDict); }},
      {'t', [](Interpreter& i) { return i.container_from_mark(Kind::kTuple); }},
      {0x91, [](Interpreter& i) { return i.container_from_mark(Kind::kSet); }},
      {0x85, [](Interpreter& i) { return i.tuple(1); }},
      {0x86, [](Interpreter& i) { return i.tuple(2); }},
      {0x87, [](Interpreter& i) { return i.tuple(3); }},
      {'a', [](Interpreter& i) { return i.add_items(Kind::kList, false); }},
      {'e', [](Interpreter& i) { return i.add_items(Kind::kList, true); }},
      {'s', [](Interpreter& i) { return i.add_items(Kind::kDict, false); }},
      {'u', [](Interpreter& i) { return i.add_items(Kind::kDict, true); }},
      {0x90, [](Interpreter& i) { return i.add_items(Kind::kSet, true); }},
      // stack and memo
      {'(', [](Interpreter& i) { return i.mark(); }},
      {'0', [](Interpreter& i) { return i.pop_any(); }},
      {'1', [](Interpreter& i) { return i.pop_to_mark().map([](const auto&) {}); }},
      {'2', [](Interpreter& i) { return i.duplicate(); }},
      {'p', [](Interpreter& i) { return i.line_index().and_then([&](std::uint64_t index) { return i.put(index); }); }},
      {'q', [](Interpreter& i) { return i.number(1).and_then([&](std::uint64_t index) { return i.put(index); }); }},
      {'r', [](Interpreter& i) { return i.number(4).and_then([&](std::uint64_t index) { return i.put(index); }); }},
      {0x94, [](Interpreter& i) { return i.put(i.memoized_); }},
      {'g', [](Interpreter& i) { return i.line_index().and_then([&](std::uint64_t index) { return i.get(index); }); }},
      {'h', [](Interpreter& i) { return i.number(1).and_then([&](std::uint64_t index) { return i.get(index); }); }},
      {'j', [](Interpreter& i) { return i.number(4).and_then([&](std::uint64_t index) { return i.get(index); }); }},
      // names and what is made with them
      {'c', [](Interpreter& i) { return i.global_lines(); }},
      {0x93, [](Interpreter& i) { return i.global_of_stack(); }},
      {'i', [](Interpreter& i) { return i.instance_lines(); }},
      {'o', [](Interpreter& i) { return i.instance_of_mark(); }},
      {'R', [](Interpreter& i) { return i.call(false); }},
      {0x81, [](Interpreter& i) { return i.call(false); }},
      {0x92, [](Interpreter& i) { return i.call(true); }},
      {'b', [](Interpreter& i) { return i.state(); }},
      {'Q', [](Interpreter& i) { return i.persistent_id(); }},
      {'P', [](Interpreter&) -> Step { return refused("a persistent id as text"); }},
      {0x82, [](Interpreter&) -> Step { return refused("an extension of copyreg"); }},
      {0x83, [](Interpreter&) -> Step { return refused("an extension of copyreg"); }},
      {0x84, [](Interpreter&) -> Step { return refused("an extension of copyreg"); }},
      {0x97, [](Interpreter&) -> Step { return refused("a buffer from outside it"); }},
      {0x98, [](Interpreter&) -> Step { return refused("a buffer from outside it"); }},
  };
  static const Table all_steps = [] {
    Table table;
    for (const Opcode& opcode : kOpcodes) table.steps[opcode.code] = opcode.step;
    return table;
  }();
  return all_steps;
}
// clang-format on

Interpreter::Interpreter(std::span<const std::byte> pickle, Heap& heap) noexcept : pickle_(pickle), heap_(heap) {}

Result<Id> Interpreter::run() {
  constexpr std::byte kStop{'.'};
  while (position_ < pickle_.size()) {
    const std::size_t at = position_;
    const std::byte opcode = pickle_[position_++];
    if (opcode == kStop) return pop();
    auto done = step(opcode);
    if (done && !heap_.exceeded().empty()) done = too_many(heap_.exceeded());
    if (!done) {
      Error error = std::move(done).error();
      error.message += " (byte " + std::to_string(at) + " of the pickle)";
      return tl::unexpected(std::move(error));
    }
  }
  return fail(ErrorCode::kDataLoss, "its pickle ends without its last opcode");
}

Interpreter::Step Interpreter::step(std::byte opcode) {
  if (auto* const known = table().steps[std::to_integer<std::size_t>(opcode)]) return known(*this);
  return fail(ErrorCode::kDataLoss, "byte " + std::to_string(std::to_integer<unsigned>(opcode)) +
                                        " is not an opcode of pickle: it is damaged or not a PyTorch file");
}

Result<std::string_view> Interpreter::take(std::uint64_t count) {
  if (count > pickle_.size() - position_) return fail(ErrorCode::kDataLoss, "its pickle ends inside a value");
  const auto bytes = pickle_.subspan(position_, static_cast<std::size_t>(count));
  position_ += bytes.size();
  return text_of(bytes);
}

Result<std::string_view> Interpreter::line() {
  const std::string_view rest = text_of(pickle_.subspan(position_));
  const std::size_t end = rest.find('\n');
  if (end == std::string_view::npos) return fail(ErrorCode::kDataLoss, "its pickle ends inside a line");
  position_ += end + 1;
  return rest.substr(0, end);
}

Result<std::uint64_t> Interpreter::number(unsigned width) {
  MODELBROKER_ASSIGN(const std::string_view bytes, take(width));
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  return value;
}

Interpreter::Step Interpreter::push(Id id) {
  if (stack_.size() >= kMaxStack) return too_many("values on its stack");
  stack_.push_back(id);
  return {};
}

Result<Id> Interpreter::top() const {
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
    return fail(ErrorCode::kDataLoss, "its pickle takes a value that is not there");
  }
  return stack_.back();
}

Result<Id> Interpreter::pop() {
  MODELBROKER_ASSIGN(const Id id, top());
  stack_.pop_back();
  return id;
}

Interpreter::Step Interpreter::mark() {
  if (marks_.size() >= kMaxMarks) return too_many("levels");
  marks_.push_back(stack_.size());
  return {};
}

Result<std::vector<Id>> Interpreter::pop_to_mark() {
  if (marks_.empty()) return fail(ErrorCode::kDataLoss, "its pickle closes what it did not open");
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<Id> above(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return above;
}

// As in Python: a mark that lies on top goes instead of a value.
Interpreter::Step Interpreter::pop_any() {
  if (!marks_.empty() && marks_.back() == stack_.size()) {
    marks_.pop_back();
    return {};
  }
  return pop().map([](Id) {});
}

Interpreter::Step Interpreter::duplicate() {
  MODELBROKER_ASSIGN(const Id id, top());
  return push(id);
}

Interpreter::Step Interpreter::put(std::uint64_t index) {
  if (index >= kMaxMemo) return too_many("remembered values");
  MODELBROKER_ASSIGN(const Id id, top());
  if (index >= memo_.size()) memo_.resize(static_cast<std::size_t>(index) + 1, kNotMemoized);
  if (memo_[index] == kNotMemoized) ++memoized_;
  memo_[index] = id;
  return {};
}

Interpreter::Step Interpreter::get(std::uint64_t index) {
  if (index >= memo_.size() || memo_[index] == kNotMemoized) {
    return fail(ErrorCode::kDataLoss, "its pickle asks for value " + std::to_string(index) + ", which it did not keep");
  }
  return push(memo_[index]);
}

Result<std::uint64_t> Interpreter::line_index() {
  MODELBROKER_ASSIGN(const std::string_view digits, line());
  std::uint64_t index = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc{} || end != digits.data() + digits.size()) {
    return fail(ErrorCode::kDataLoss, "its pickle has an index that is not a number");
  }
  return index;
}

}  // namespace modelbroker::unpickle
