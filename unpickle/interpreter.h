// Interpreter: reads one pickle, protocols 0 to 5, into a heap of values.
//
// It has no callable: a name is looked up in a table and what "calls" it becomes a value that says so (reductions.h).
// Nothing is imported, opened or run. Threads: one. Failure: invalid_argument names what the pickle wants and may not
// have, data_loss what is damaged, unimplemented what is past bounds.h; each says at which byte.
#pragma once

#include <cstddef>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "unpickle/heap.h"

namespace modelbroker::unpickle {

class Interpreter {
 public:
  // REQUIRES: `pickle` stays as long as the heap.
  Interpreter(std::span<const std::byte> pickle, Heap& heap) noexcept;

  // The value that the pickle stands for.
  [[nodiscard]] Result<Id> run();
  // Bytes up to and with its STOP.
  [[nodiscard]] std::size_t consumed() const noexcept { return position_; }
  // Classes of packages that the table does not know.
  [[nodiscard]] const std::set<std::string_view>& placeholders() const noexcept { return placeholders_; }

 private:
  using Step = Result<void>;
  struct Opcode;
  struct Table;
  static const Table& table();

  [[nodiscard]] Step step(std::byte opcode);

  // What stands behind an opcode.
  [[nodiscard]] Result<std::string_view> take(std::uint64_t count);
  [[nodiscard]] Result<std::string_view> line();
  [[nodiscard]] Result<std::uint64_t> number(unsigned width);  // little-endian

  // The stack. Nothing below the last mark is ever popped.
  [[nodiscard]] Step push(Id id);
  [[nodiscard]] Result<Id> pop();
  [[nodiscard]] Result<Id> top() const;
  [[nodiscard]] Step mark();
  [[nodiscard]] Result<std::vector<Id>> pop_to_mark();
  [[nodiscard]] Step pop_any();
  [[nodiscard]] Step duplicate();

  // The memo.
  [[nodiscard]] Step put(std::uint64_t index);
  [[nodiscard]] Step get(std::uint64_t index);
  [[nodiscard]] Result<std::uint64_t> line_index();

  // literals.cc
  [[nodiscard]] Step protocol();
  [[nodiscard]] Step frame();
  [[nodiscard]] Step integer(unsigned width, bool is_signed);
  [[nodiscard]] Step integer_line();
  [[nodiscard]] Step long_bytes(unsigned width);
  [[nodiscard]] Step real();
  [[nodiscard]] Step real_line();
  [[nodiscard]] Step text(Kind kind, unsigned width);
  [[nodiscard]] Step text_of_python2(unsigned width);
  [[nodiscard]] Step quoted_line();
  [[nodiscard]] Step unicode_line();

  // containers.cc
  [[nodiscard]] Step container(Kind kind);            // empty
  [[nodiscard]] Step container_from_mark(Kind kind);  // of what lies above the mark
  [[nodiscard]] Step tuple(unsigned count);
  [[nodiscard]] Step add_items(Kind kind, bool many);
  [[nodiscard]] Step global(std::string_view module, std::string_view name);
  [[nodiscard]] Step global_lines();
  [[nodiscard]] Step global_of_stack();
  [[nodiscard]] Step instance_lines();
  [[nodiscard]] Step instance_of_mark();
  [[nodiscard]] Step call(bool has_keywords);
  [[nodiscard]] Step state();
  [[nodiscard]] Step persistent_id();

  std::span<const std::byte> pickle_;
  Heap& heap_;
  std::size_t position_ = 0;
  std::vector<Id> stack_;
  std::vector<std::size_t> marks_;
  std::vector<Id> memo_;
  std::size_t memoized_ = 0;
  std::set<std::string_view> placeholders_;
};

}  // namespace modelbroker::unpickle
