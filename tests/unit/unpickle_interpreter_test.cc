// Pickles: every opcode's value, and everything that is refused. What real files hold is in
// tests/integration/unpickle_torch_test.py.
#include "unpickle/interpreter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/pickle_text.h"
#include "unpickle/bounds.h"
#include "unpickle/byte_source.h"

namespace modelbroker::unpickle {
namespace {

using ::testing::HasSubstr;
using testing::integer;
using testing::little_endian;
using testing::name;
using testing::shown;
using testing::text;
using testing::two_floats;
using std::string_literals::operator""s;

struct Read {
  std::string value;
  Error error;
  bool succeeded = false;
};

Read read(std::string_view pickle) {
  Heap heap;
  Interpreter interpreter(std::as_bytes(std::span(pickle)), heap);
  const auto root = interpreter.run();
  if (!root) return {.value = {}, .error = root.error()};
  EXPECT_LE(interpreter.consumed(), pickle.size());
  return {.value = shown(heap, *root), .error = {}, .succeeded = true};
}

// ---- values

struct ValueCase {
  const char* what;
  std::string pickle;
  std::string value;
};

class PickleValueTest : public ::testing::TestWithParam<ValueCase> {};

TEST_P(PickleValueTest, OpcodesStandForTheirValue) {
  const Read result = read(GetParam().pickle);
  ASSERT_TRUE(result.succeeded) << result.error.message;
  EXPECT_EQ(result.value, GetParam().value);
}

const auto kReadCases = std::vector<ValueCase>{
    {"None", "N.", "None"},
    {"NewTrue", "\x80\x02\x88.", "True"},
    {"NewFalse", "\x89.", "False"},
    {"BoolOfProtocol0", "(I01\nI00\nt.", "(True, False)"},
    {"Ints", "(I-7\nL-7L\nK\xffM\xff\xffJ\xff\xff\xff\xfft.", "(-7, -7, 255, 65535, -1)"},
    {"Long1", "(\x8a\x00\x8a\x01\xff\x8a\x02\xff\x00\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80t."s,
     "(0, -1, 255, -9223372036854775808)"},
    {"Long4", "\x8b\x01\x00\x00\x00\x05."s, "5"},
    {"LargeInt", "(\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00L99999999999999999999L\nt."s, "(large, large)"},
    {"Floats",
     "(F1.5\nG\x3f\xf8\x00\x00\x00\x00\x00\x00"
     "Finf\nt."s,
     "(1.500000, 1.500000, inf)"},
    {"StringsOfPython2", "(S'a\\n\\x41'\nU\x01zT\x01\x00\x00\x00yU\x01\xfft."s, "('a\nA', 'z', 'y', b'\xff')"},
    {"UnicodeLine", "V\\u00e9\\U0001F600a\xe9\n.",
     "'\xc3\xa9\xf0\x9f\x98\x80"
     "a\xc3\xa9'"},
    {"UnicodeOfEveryWidth",
     "(X\x01\x00\x00\x00"
     "a\x8c\x01"
     "b\x8d\x01\x00\x00\x00\x00\x00\x00\x00"
     "ct."s,
     "('a', 'b', 'c')"},
    {"BytesOfEveryWidth",
     "(B\x01\x00\x00\x00"
     "aC\x01"
     "b\x8e\x01\x00\x00\x00\x00\x00\x00\x00"
     "c\x96\x01\x00\x00\x00\x00\x00\x00\x00"
     "dt."s,
     "(b'a', b'b', b'c', b'd')"},
    {"Containers",
     "(]})\x8f(K\x01l(K\x02K\x03"
     "d(K\x04\x91t.",
     "([], dict(), (), {}, [1], dict(2, 3), {4})"},
    {"Tuples", "(K\x01\x85K\x01K\x02\x86K\x01K\x02K\x03\x87t.", "((1), (1, 2), (1, 2, 3))"},
    {"Appends",
     "](K\x01K\x02"
     "eK\x03"
     "a.",
     "[1, 2, 3]"},
    {"SetItems", "}(K\x01NK\x02NuK\x03Ns.", "dict(1, None, 2, None, 3, None)"},
    {"AddItems", "\x8f(K\x01K\x02\x90.", "{1, 2}"},
    {"PopDupMark",
     "(K\x01"
     "2K\x05"
     "0(K\x07"
     "1(0t.",
     "(1, 1)"},
    {"MemoOfEveryWidth", "(K\x01p5\nK\x02q\x06K\x03r\x07\x00\x00\x00g5\nh\x06j\x07\x00\x00\x00t."s,
     "(1, 2, 3, 1, 2, 3)"},
    {"Memoize", "(K\x01\x94K\x02\x94h\x00h\x01t."s, "(1, 2, 1, 2)"},
    {"Frame", "\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00N."s, "None"},
    {"OrderedDict", name("collections", "OrderedDict") + "(((K\x01K\x02tltRK\x03K\x04s.", "dict(1, 2, 3, 4)"},
    {"OrderedDictWithAttributes", name("collections", "OrderedDict") + ")R}b.", "dict()"},
    {"DefaultDict", name("collections", "defaultdict") + name("__builtin__", "list") + "\x85RK\x01Ns.",
     "dict(1, None)"},
    {"Counter", name("collections", "Counter") + "}K\x01K\x02s\x85R.", "dict(1, 2)"},
    {"Sets",
     "(" + name("__builtin__", "set") +
         "]K\x01"
         "a\x85R" +
         name("builtins", "frozenset") + ")Rt.",
     "({1}, {})"},
    {"Size", name("torch", "Size") + "K\x02\x85\x85R.", "(2)"},
    {"BytesOfProtocol2", name("_codecs", "encode") + text("a\xc3\xbf") + text("latin1") + "\x86R.", "b'a\xff'"},
    {"ByteArray",
     name("builtins", "bytearray") + "C\x01"
                                     "a\x85R.",
     "b'a'"},
    {"Complex", name("builtins", "complex") + "K\x01K\x02\x86R.", "builtins.complex(1, 2)"},
    {"Namespace", name("argparse", "Namespace") + ")\x81}K\x01Nsb.", "argparse.Namespace(dict(1, None))"},
    {"ObjectOfProtocol0",
     name("copy_reg", "_reconstructor") + "(" + name("argparse", "Namespace") + name("__builtin__", "object") +
         "NtR}b.",
     "argparse.Namespace(dict())"},
    {"NumpyScalar",
     name("numpy._core.multiarray", "scalar") + name("numpy", "dtype") + text("i4") + "\x89\x88\x87R(K\x03" +
         text("<") + "tbC\x04\xfe\xff\xff\xff\x86R.",
     "-2"},
    {"NumpyScalarOfOtherOrder",
     name("numpy.core.multiarray", "scalar") + name("numpy", "dtype") + text("i4") + "\x85R(K\x03" + text(">") +
         "tbC\x04\xfe\xff\xff\xff\x86R.",
     "numpy.core.multiarray.scalar(numpy.dtype('i4', (3, '>')), b'\xfe\xff\xff\xff')"},
    {"StackGlobal",
     "\x8c\x0b"
     "collections\x8c\x0bOrderedDict\x93)R.",
     "dict()"},
    {"UnknownClass", name("mytrainer.config", "Options") + ")\x81}b.", "mytrainer.config.Options(dict())"},
    {"UnknownClassByKeywords", name("pkg", "C") + ")}\x92.", "pkg.C(dict())"},
    {"UnknownClassOfItems",
     name("pkg", "C") + ")R(K\x01"
                        "eK\x02K\x03s.",
     "pkg.C(1, 2, 3)"},
    {"InstanceOfProtocol0", "(K\x01ipkg\nC\n.", "pkg.C(1)"},
    {"InstanceOfProtocol1", "(" + name("pkg", "C") + "K\x01o.", "pkg.C(1)"},
    {"Tensor", two_floats() + ".", "tensor"},
    {"Parameter", name("torch._utils", "_rebuild_parameter") + two_floats() + "\x88N\x87R.", "tensor"},
    {"SelfContained", "]2a.", "[[[[[[[[[[[...]]]]]]]]]]]"},
};

INSTANTIATE_TEST_SUITE_P(All, PickleValueTest, ::testing::ValuesIn(kReadCases),
                         [](const auto& each) { return std::string(each.param.what); });

// ---- refusals

struct Refusal {
  const char* what;
  std::string pickle;
  ErrorCode code;
  std::string message;
};

class PickleRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(PickleRefusalTest, IsTypedAndNamesWhatItWanted) {
  const Read result = read(GetParam().pickle);
  ASSERT_FALSE(result.succeeded) << result.value;
  EXPECT_EQ(result.error.code, GetParam().code) << result.error.message;
  EXPECT_THAT(result.error.message, HasSubstr(GetParam().message));
}

constexpr auto kWants = ErrorCode::kInvalidArgument;
constexpr auto kDamaged = ErrorCode::kDataLoss;
constexpr auto kTooMuch = ErrorCode::kUnimplemented;

const auto kHostileCases = std::vector<Refusal>{
    {"SystemByReduce", name("os", "system") + text("id") + "\x85R.", kWants, "'os.system'"},
    {"PosixSystem", name("posix", "system") + text("id") + "\x85R.", kWants, "'posix.system'"},
    {"SystemByProtocol0", "cos\nsystem\n(S'id'\ntR.", kWants, "'os.system'"},
    {"SystemByInst", "(S'id'\nios\nsystem\n.", kWants, "'os.system'"},
    {"SystemByObj", "(" + name("os", "system") + text("id") + "o.", kWants, "'os.system'"},
    {"SystemByStackGlobal", "\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", kWants, "'os.system'"},
    {"SystemByNewObj", name("subprocess", "Popen") + text("id") + "\x85\x81.", kWants, "'subprocess.Popen'"},
    {"SystemByNewObjEx", name("subprocess", "Popen") + ")}\x92.", kWants, "'subprocess.Popen'"},
    {"EvalOfPython2", name("__builtin__", "eval") + text("1") + "\x85R.", kWants, "'__builtin__.eval'"},
    {"Getattr", name("builtins", "getattr") + ".", kWants, "'builtins.getattr'"},
    {"Import", name("importlib", "import_module") + ".", kWants, "'importlib.import_module'"},
    {"PickleOfPython2", name("cPickle", "loads") + ".", kWants, "'cPickle.loads'"},
    {"LaterModule", name("_interpreters", "run_string") + ".", kWants, "'_interpreters.run_string'"},
    {"TorchLoad", name("torch", "load") + ".", kWants, "'torch.load'"},
    {"TorchHub", name("torch.hub", "load") + ".", kWants, "'torch.hub.load'"},
    {"TorchBytes", name("torch.storage", "_load_from_bytes") + ".", kWants, "'torch.storage._load_from_bytes'"},
    {"TorchNested", "\x8c\x05torch\x8c\x10os.system.called\x93.", kWants, "'torch.os.system.called'"},
    {"PickledModule", name("torch.nn.modules.linear", "Linear") + ".", kWants, "state_dict"},
    {"NumpyLoad", name("numpy", "load") + ".", kWants, "'numpy.load'"},
    {"NumpyRunstring", name("numpy.testing._private.utils", "runstring") + ".", kWants, "runstring"},
    {"Pip", name("pip._internal", "main") + ".", kWants, "'pip._internal.main'"},
    {"NameWithSpaces", "cos \nsystem\n.", kWants, "cannot be a name"},
    {"EmptyName", "c\n\n.", kWants, "cannot be a name"},
    {"LongName", "cpkg\n" + std::string(1000, 'a') + "\n.", kWants, "cannot be a name"},
    {"NameOfNumbers", "K\x01K\x02\x93.", kDamaged, "not text"},
    {"CallOfDtype", name("torch", "float32") + ")R.", kWants, "'torch.float32'"},
    {"CallOfValue", name("builtins", "dict") + ")R.", kWants, "'builtins.dict'"},
    {"CallOfText", text("os.system") + ")R.", kWants, "calls a string"},
    {"CallOfObject", name("pkg", "C") + ")R)R.", kWants, "calls an object"},
    {"StateOfTensor", two_floats() + "}b.", kWants, "attributes of a tensor"},
    {"StateOfName", name("collections", "OrderedDict") + "}b.", kWants, "attributes of a name"},
    {"Extension1", "\x82\x01.", kWants, "extension"},
    {"Extension2", "\x83\x01\x01.", kWants, "extension"},
    {"Extension4", "\x84\x01\x01\x01\x01.", kWants, "extension"},
    {"NextBuffer", "\x97.", kWants, "buffer"},
    {"ReadOnlyBuffer", "N\x98.", kWants, "buffer"},
    {"TextPersistentId", "P0\n.", kWants, "persistent id as text"},
    {"PersistentIdOfText", text("storage") + "Q.", kDamaged, "persistent id"},
    {"PersistentIdOfTwo", text("storage") + "N\x86Q.", kDamaged, "persistent id"},
    {"PersistentIdOfModule", "(" + text("module") + "NNNNtQ.", kDamaged, "persistent id"},
    {"NegativeCount", testing::storage("FloatStorage", "0", "J\xff\xff\xff\xff") + ".", kDamaged, "persistent id"},
    {"OverflowingCount",
     testing::storage("DoubleStorage", "0", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f") + ".", kDamaged,
     "persistent id"},
    {"TensorOfText", testing::tensor(text("x"), "K\0"s, ")", ")") + ".", kDamaged, "storage"},
    {"TensorOfDifferentLengths",
     testing::tensor(testing::storage("FloatStorage", "0", "K\x02"), "K\0"s, "K\x02\x85", ")") + ".", kDamaged,
     "differ in length"},
    {"TensorOfNegativeShape",
     testing::tensor(testing::storage("FloatStorage", "0", "K\x02"), "K\0"s, "I-1\n\x85", "K\x01\x85") + ".", kDamaged,
     "negative"},
    {"TensorOfTextShape",
     testing::tensor(testing::storage("FloatStorage", "0", "K\x02"), "K\0"s, "N\x85", "K\x01\x85") + ".", kDamaged,
     "not made of numbers"},
    {"TensorOfManyDimensions",
     testing::tensor(testing::storage("FloatStorage", "0", "K\x02"), "K\0"s, "(" + std::string(65, ']') + "t", ")") +
         ".",
     kDamaged, "at most 64"},
    {"ParameterOfNone", name("torch._utils", "_rebuild_parameter") + "NNN\x87R.", kDamaged, "arguments"},
    {"EncodeOfOtherCodec", name("_codecs", "encode") + text("a") + text("rot13") + "\x86R.", kDamaged, "arguments"},
    {"EncodeOfOtherText", name("_codecs", "encode") + text("\xe2\x82\xac") + text("latin1") + "\x86R.", kDamaged,
     "arguments"},
    {"ReconstructorOfItself",
     name("copyreg", "_reconstructor") + "(" + name("copyreg", "_reconstructor") + "N)tR.", kDamaged, "arguments"},
    {"ArgumentsOfList", name("collections", "OrderedDict") + "]R.", kDamaged, "not a tuple"},
    {"Empty", "", kDamaged, "last opcode"},
    {"StopOfNothing", ".", kDamaged, "not there"},
    {"PopOfNothing", "0.", kDamaged, "not there"},
    {"PopBelowMark", "N(a.", kDamaged, "not there"},
    {"CloseOfNothing", "t.", kDamaged, "did not open"},
    {"OddDictionary", "(Nd.", kDamaged, "without a value"},
    {"OddSetItems", "}(Nu.", kDamaged, "without a value"},
    {"AppendToTuple", ")Na.", kDamaged, "adds elements to a tuple"},
    {"SetItemOfList", "]NNs.", kDamaged, "adds elements to a list"},
    {"UnknownMemo", "h\x07.", kDamaged, "did not keep"},
    {"NegativeMemo", "g-1\n.", kDamaged, "not a number"},
    {"LargeMemo", "Nr\xff\xff\xff\xff.", kTooMuch, "remembered"},
    {"CutText", "X\xff\xff\xff\xff" "a", kDamaged, "ends inside"},
    {"CutLongText", "\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", kDamaged, "ends inside"},
    {"CutLong4", "\x8b\xff\xff\xff\xff.", kDamaged, "ends inside"},
    {"CutLine", "Inf", kDamaged, "ends inside a line"},
    {"CutFrame", "\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", kDamaged, "inside a frame"},
    {"BadInt", "Ix\n.", kDamaged, "not a number"},
    {"BadFloat", "Fx\n.", kDamaged, "not a number"},
    {"BadString", "Sx\n.", kDamaged, "quotes"},
    {"BadEscape", "S'\\q'\n.", kDamaged, "escape"},
    {"BadUnicode", "V\\uZZZZ\n.", kDamaged, "escape"},
    {"UnicodePastTheLast", "V\\U00110000\n.", kDamaged, "escape"},
    {"LaterProtocol", "\x80\x06N.", kTooMuch, "protocol 6"},
    {"UnknownOpcode", "\xfe.", kDamaged, "not an opcode"},
    {"Levels", std::string(kMaxMarks + 1, '('), kTooMuch, "levels"},
    {"Values", std::string(kMaxValues + 1, ']'), kTooMuch, "more values"},
    {"DecodedText", "(" + [] {
       std::string pickle = text(std::string(1U << 20U, 'a') + "\xc3\xbf") + "q\x01";
       for (int i = 0; i < 70; ++i) pickle += name("_codecs", "encode") + "h\x01" + text("latin1") + "\x86R0";
       return pickle;
     }(), kTooMuch, "decoded text"},
    {"Elements", [] {
       std::string pickle = "](" + std::string(1U << 20U, 'N') + "eq\x01";
       for (int i = 0; i < 20; ++i) pickle += name("builtins", "set") + "h\x01\x85R0";
       return pickle;
     }(), kTooMuch, "more elements"},
};

INSTANTIATE_TEST_SUITE_P(All, PickleRefusalTest, ::testing::ValuesIn(kHostileCases),
                         [](const auto& each) { return std::string(each.param.what); });

TEST(PickleTest, EveryByteMayBeCutOff) {
  const std::string whole = "}" + text("a") + two_floats() + "s" + name("pkg", "C") + ")R0.";
  ASSERT_TRUE(read(whole).succeeded);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Read result = read(std::string_view(whole).substr(0, size));
    ASSERT_FALSE(result.succeeded) << size;
    EXPECT_EQ(result.error.code, ErrorCode::kDataLoss) << result.error.message;
  }
}

}  // namespace
}  // namespace modelbroker::unpickle
