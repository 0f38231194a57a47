// docs/protocol.md against wire/messages.h: the document is what people write other clients from, so its
// tables must list exactly the fields that the code sends and reads.
#include <gtest/gtest.h>

#include <algorithm>
#include <concepts>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "broker/cli/output.h"
#include "shm/error.h"
#include "wire/messages.h"

namespace modelbroker::wire {
namespace {

// A table row as the document writes it, or as the code would have it written.
struct Field {
  std::string name;
  std::string kind;
  bool required = false;
  std::string meaning{};  // of the document only
};
using Table = std::vector<Field>;

// ---- the document

std::string trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(' ') - first + 1));
}

// The cells of "| a | b |"; empty for a line that is no row.
std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> list;
  if (!line.starts_with('|')) return list;
  std::istringstream rest(line.substr(1));
  for (std::string cell; std::getline(rest, cell, '|');) list.push_back(trimmed(cell));
  return list;
}

// What stands between the first two backticks.
std::string quoted(const std::string& text) {
  const auto begin = text.find('`');
  if (begin == std::string::npos) return "";
  const auto end = text.find('`', begin + 1);
  return end == std::string::npos ? "" : text.substr(begin + 1, end - begin - 1);
}

struct Document {
  std::vector<std::string> sections;    // the "### name" headings, in order
  std::map<std::string, Table> tables;  // "model.get request", "model.get reply", "model", "code", ...

  static const Document& get() {
    static const Document document = read();
    return document;
  }

 private:
  static Document read() {
    Document document;
    std::ifstream file(MODELBROKER_PROTOCOL_DOCUMENT);
    std::string section;
    Table* table = nullptr;
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("## ")) section.clear();
      if (line.starts_with("### ")) {
        section = line.substr(4);
        document.sections.push_back(section);
      }
      const std::vector<std::string> row = cells(line);
      if (row.size() < 2) {
        table = nullptr;
      } else if (table == nullptr) {
        const bool of_exchange = row[0] == "request" || row[0] == "reply";
        const std::string key = of_exchange && !section.empty() ? section + " " + row[0] : row[0];
        EXPECT_FALSE(document.tables.contains(key)) << "the document has two tables '" << key << "'";
        table = &document.tables[key];
      } else if (!row[0].starts_with("-")) {
        const std::string mark = row[0].substr(row[0].rfind('`') + 1);
        EXPECT_TRUE(mark.empty() || mark == "*") << "in '" << section << "', not understood: " << row[0];
        table->push_back({quoted(row[0]), row[1], mark == "*", row.size() > 2 ? row[2] : ""});
      }
    }
    return document;
  }
};

// ---- the code

template <class T>
concept Message = requires(T& value) {
  T::fields(value, [](auto&&...) {});
};
template <class T>
struct KindOf {
  static constexpr std::string_view word = "map";  // a message or a std::map
};
template <>
struct KindOf<std::string> {
  static constexpr std::string_view word = "str";
};
template <>
struct KindOf<bool> {
  static constexpr std::string_view word = "bool";
};
template <>
struct KindOf<std::uint64_t> {
  static constexpr std::string_view word = "uint";
};
template <>
struct KindOf<double> {
  static constexpr std::string_view word = "float";
};
template <>
struct KindOf<std::optional<double>> {
  static constexpr std::string_view word = "float";
};
template <class T>
struct KindOf<std::vector<T>> {
  static constexpr std::string_view word = "array";
};

template <Message M>
Table fields_of() {
  Table table;
  M message;
  M::fields(message, [&]<class T>(const char* name, T&, Need need = Need::kOptional) {
    table.push_back({name, std::string(KindOf<T>::word), need == Need::kRequired});
  });
  return table;
}

// ---- the comparison

std::string shown(const Field& field) { return field.name + (field.required ? "* " : " ") + field.kind; }

// What differs, one line each; empty if nothing does.
std::string difference(const Table& document, const Table& code) {
  std::string text;
  const auto find = [](const Table& table, const std::string& name) {
    return std::find_if(table.begin(), table.end(), [&](const Field& field) { return field.name == name; });
  };
  for (const Field& field : code) {
    const auto found = find(document, field.name);
    if (found == document.end()) {
      text += "'" + field.name + "' is in the code and not in the document\n";
    } else if (shown(*found) != shown(field)) {
      text += "the document has '" + shown(*found) + "', the code '" + shown(field) + "'\n";
    }
  }
  std::set<std::string> seen;
  for (const Field& field : document) {
    if (find(code, field.name) == code.end()) {
      text += "'" + field.name + "' is in the document and not in the code\n";
    }
    if (!seen.insert(field.name).second) text += "'" + field.name + "' is in the document twice\n";
  }
  if (!text.empty()) return text;
  for (std::size_t i = 0; i < code.size(); ++i) {
    if (document[i].name != code[i].name) return "'" + code[i].name + "' is not at its place in the document\n";
  }
  return "";
}

template <Message M>
void expect_documented(const std::string& table) {
  const auto& tables = Document::get().tables;
  const auto found = tables.find(table);
  if (found == tables.end()) {
    ADD_FAILURE() << "the document has no table '" << table << "'";
    return;
  }
  EXPECT_EQ(difference(found->second, fields_of<M>()), "") << "in the table '" << table << "'";
}

// The names in the meaning's first braces: `{pid, uid, lease, since_ms}`.
void expect_listed(const std::string& table, const std::string& field, const Table& code) {
  const Table& rows = Document::get().tables.at(table);
  const auto row = std::find_if(rows.begin(), rows.end(), [&](const Field& each) { return each.name == field; });
  ASSERT_NE(row, rows.end()) << table << " " << field;
  const auto begin = row->meaning.find('{');
  const auto end = row->meaning.find('}');
  ASSERT_LT(begin, end) << table << " " << field << " lists no fields: " << row->meaning;
  Table listed;
  std::istringstream names(row->meaning.substr(begin + 1, end - begin - 1));
  for (std::string name; std::getline(names, name, ',');) listed.push_back({trimmed(name), "", false});
  Table plain;
  for (const Field& each : code) plain.push_back({each.name, "", false});
  EXPECT_EQ(difference(listed, plain), "") << "in '" << field << "' of the table '" << table << "'";
}

// ---- the tests

TEST(ProtocolDocumentTest, EveryExchangeHasItsTables) {
#define MODELBROKER_CHECK(type, request, reply) \
  expect_documented<request>(type " request");  \
  expect_documented<reply>(type " reply");
  MODELBROKER_EXCHANGES(MODELBROKER_CHECK)
#undef MODELBROKER_CHECK
}

TEST(ProtocolDocumentTest, EverySectionIsAnExchangeOfTheCode) {
  std::vector<std::string> types;
#define MODELBROKER_TYPE(type, request, reply) types.emplace_back(type);
  MODELBROKER_EXCHANGES(MODELBROKER_TYPE)
#undef MODELBROKER_TYPE
  EXPECT_EQ(Document::get().sections, types);
}

TEST(ProtocolDocumentTest, NestedMapsHaveTheirTables) {
  expect_documented<ModelInfo>("model");
  expect_documented<BlockGrant>("block");
  expect_documented<TierStatus>("tier");
  expect_documented<ScrubbedModel>("scrubbed");
  expect_documented<EventData>("event data");
}

TEST(ProtocolDocumentTest, AnEventIsItsFieldsAfterTheVersion) {
  Table code = fields_of<Event>();
  code.insert(code.begin(), {"v", "uint", true});
  EXPECT_EQ(difference(Document::get().tables.at("event"), code), "");
}

TEST(ProtocolDocumentTest, EventTypesAreThoseOfTheCode) {
  std::vector<std::string> documented;
  std::set<std::string> known;
  for (const Field& field : fields_of<EventData>()) known.insert(field.name);
  for (const Field& row : Document::get().tables.at("event type")) {
    documented.push_back(row.name);
    std::istringstream names(row.kind);  // of this table: which data
    for (std::string name; std::getline(names, name, ',');) EXPECT_TRUE(known.contains(trimmed(name))) << name;
  }
  EXPECT_EQ(documented, std::vector<std::string>(kEventTypes.begin(), kEventTypes.end()));
}

TEST(ProtocolDocumentTest, SmallMapsAreListedWhereTheyStand) {
  expect_listed("model", "leases", fields_of<LeaseHolder>());
  for (const char* const table : {"model.load_model reply", "model", "event data"}) {
    expect_listed(table, "blocks", fields_of<ModelBlock>());
  }
  for (const char* const table : {"model.load_model request", "model.attach request"}) {
    expect_listed(table, "files", fields_of<OfferedFile>());
  }
  expect_listed("model.get_model_info reply", "loaded_models", fields_of<LoadedModel>());
  expect_listed("lease.restate request", "leases", fields_of<HeldLease>());
}

TEST(ProtocolDocumentTest, EveryTableIsOneThatIsChecked) {
  std::set<std::string> known{"socket", "request",  "code",  "model",      "block",
                              "tier",   "scrubbed", "event", "event data", "event type"};
#define MODELBROKER_TABLES(type, request, reply) \
  known.insert(type " request");                 \
  known.insert(type " reply");
  MODELBROKER_EXCHANGES(MODELBROKER_TABLES)
#undef MODELBROKER_TABLES
  for (const auto& [name, table] : Document::get().tables) EXPECT_TRUE(known.contains(name)) << name;
}

TEST(ProtocolDocumentTest, TheRequestFrameIsAsTheCodeReadsIt) {
  // wire/frame.h has no fields(): these are the words of Request::decode.
  Table frame = Document::get().tables.at("request");
  const Table code{{"v", "uint"},   {"request_id", "str"}, {"type", "str"},
                   {"data", "map"}, {"session", "str"},    {"deadline_ms", "uint"}};
  EXPECT_EQ(difference(frame, code), "");
}

TEST(ProtocolDocumentTest, ErrorCodesAreTheCodesWords) {
  std::vector<std::string> words;
  for (const Field& row : Document::get().tables.at("code")) words.push_back(row.name);
  std::vector<std::string> codes;
  for (unsigned i = 0; i <= static_cast<unsigned>(ErrorCode::kInternal); ++i) {
    codes.emplace_back(to_string(static_cast<ErrorCode>(i)));
  }
  EXPECT_EQ(words, codes);  // in the order of their numbers
}

TEST(ProtocolDocumentTest, ExitStatusesAreThoseOfTheCommands) {
  unsigned number = 0;
  for (const Field& row : Document::get().tables.at("code")) {
    const auto code = static_cast<ErrorCode>(number++);
    EXPECT_EQ(row.kind, std::to_string(cli::exit_status(code))) << row.name;  // the column behind the name
  }
}

TEST(ProtocolDocumentTest, ADifferenceNamesItsField) {
  const Table code{{"path", "str"}, {"lease", "uint", true}};
  EXPECT_EQ(difference(code, code), "");
  EXPECT_EQ(difference({{"path", "str"}}, code), "'lease' is in the code and not in the document\n");
  EXPECT_EQ(difference({{"path", "str"}, {"lease", "uint", true}, {"more", "str"}}, code),
            "'more' is in the document and not in the code\n");
  EXPECT_EQ(difference({{"path", "str"}, {"lease", "uint"}}, code),
            "the document has 'lease uint', the code 'lease* uint'\n");
  EXPECT_EQ(difference({{"path", "uint"}, {"lease", "uint", true}}, code),
            "the document has 'path uint', the code 'path str'\n");
  EXPECT_EQ(difference({{"lease", "uint", true}, {"path", "str"}}, code),
            "'path' is not at its place in the document\n");
  EXPECT_EQ(difference({{"path", "str"}, {"lease", "uint", true}, {"path", "str"}}, code),
            "'path' is in the document twice\n");
}

}  // namespace
}  // namespace modelbroker::wire
