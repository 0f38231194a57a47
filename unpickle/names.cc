#include "unpickle/names.h"

#include <algorithm>
#include <array>

#include "shm/text.h"
#include "unpickle/bounds.h"

namespace modelbroker::unpickle {
namespace {

struct Allowed {
  std::string_view module, name;
  Role role;
};

constexpr auto kAllowed = std::to_array<Allowed>({
    {"torch._utils", "_rebuild_tensor", Role::kRebuildTensor},
    {"torch._utils", "_rebuild_tensor_v2", Role::kRebuildTensor},
    {"torch._utils", "_rebuild_tensor_v3", Role::kRebuildTensorV3},
    {"torch._utils", "_rebuild_parameter", Role::kRebuildParameter},
    {"torch._utils", "_rebuild_parameter_with_state", Role::kRebuildParameter},
    {"torch._utils", "_rebuild_sparse_tensor", Role::kRefusedTensor},
    {"torch._utils", "_rebuild_qtensor", Role::kRefusedTensor},
    {"torch._utils", "_rebuild_meta_tensor_no_storage", Role::kRefusedTensor},
    {"torch._utils", "_rebuild_nested_tensor", Role::kRefusedTensor},
    {"torch.serialization", "_get_layout", Role::kInert},
    {"torch", "per_tensor_affine", Role::kValue},
    {"torch", "per_channel_affine", Role::kValue},
    {"torch", "per_channel_affine_float_qparams", Role::kValue},
    {"torch", "Tensor", Role::kValue},
    {"torch", "Size", Role::kSize},
    {"torch", "device", Role::kInert},
    {"collections", "OrderedDict", Role::kDict},
    {"collections", "defaultdict", Role::kDefaultDict},
    {"collections", "Counter", Role::kCounter},
    {"builtins", "set", Role::kSet},
    {"builtins", "frozenset", Role::kSet},
    {"builtins", "bytearray", Role::kByteArray},
    {"builtins", "complex", Role::kInert},
    {"builtins", "slice", Role::kInert},
    // What defaultdict and copyreg._reconstructor take as an argument.
    {"builtins", "object", Role::kValue},
    {"builtins", "dict", Role::kValue},
    {"builtins", "list", Role::kValue},
    {"builtins", "tuple", Role::kValue},
    {"builtins", "int", Role::kValue},
    {"builtins", "float", Role::kValue},
    {"builtins", "bool", Role::kValue},
    {"builtins", "str", Role::kValue},
    {"builtins", "bytes", Role::kValue},
    {"copyreg", "_reconstructor", Role::kReconstructor},
    {"_codecs", "encode", Role::kEncode},
    {"numpy", "dtype", Role::kInert},
    {"numpy", "ndarray", Role::kValue},
    {"numpy.core.multiarray", "scalar", Role::kNumpyScalar},
    {"numpy._core.multiarray", "scalar", Role::kNumpyScalar},
    {"numpy.core.multiarray", "_reconstruct", Role::kInert},
    {"numpy._core.multiarray", "_reconstruct", Role::kInert},
    {"numpy.core.numeric", "_frombuffer", Role::kInert},
    {"numpy._core.numeric", "_frombuffer", Role::kInert},
    {"argparse", "Namespace", Role::kInert},
    {"datetime", "datetime", Role::kInert},
    {"datetime", "date", Role::kInert},
    {"datetime", "time", Role::kInert},
    {"datetime", "timedelta", Role::kInert},
    {"datetime", "timezone", Role::kInert},
    {"pathlib", "Path", Role::kInert},
    {"pathlib", "PosixPath", Role::kInert},
    {"pathlib", "WindowsPath", Role::kInert},
    {"pathlib", "PurePath", Role::kInert},
    {"pathlib", "PurePosixPath", Role::kInert},
    {"pathlib", "PureWindowsPath", Role::kInert},
});

// Packages none of whose names becomes a placeholder: Python's own of every version from 2.7 on, what comes with
// torch and numpy, and what runs code while it is imported. Sorted.
constexpr auto kRefusedPackages = std::to_array<std::string_view>({
    // clang-format off
    "ConfigParser", "HTMLParser", "Queue", "SocketServer", "StringIO", "Tkinter", "UserDict", "UserList",
    "UserString", "__builtin__", "__future__", "_abc", "_aix_support", "_android_support", "_apple_support", "_ast",
    "_asyncio", "_bisect", "_blake2", "_bootsubprocess", "_bz2", "_codecs", "_codecs_cn", "_codecs_hk",
    "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw", "_collections", "_collections_abc", "_colorize",
    "_compat_pickle", "_compression", "_contextvars", "_crypt", "_csv", "_ctypes", "_ctypes_test", "_curses",
    "_curses_panel", "_datetime", "_dbm", "_decimal", "_distutils_hack", "_dummy_thread", "_elementtree",
    "_frozen_importlib", "_frozen_importlib_external", "_functools", "_gdbm", "_hashlib", "_heapq", "_hmac", "_imp",
    "_interpchannels", "_interpqueues", "_interpreters", "_io", "_ios_support", "_json", "_locale", "_lsprof",
    "_lzma", "_markupbase", "_md5", "_msi", "_multibytecodec", "_multiprocessing", "_opcode", "_opcode_metadata",
    "_operator", "_osx_support", "_overlapped", "_pickle", "_posixshmem", "_posixsubprocess", "_py_abc",
    "_py_warnings", "_pydatetime", "_pydecimal", "_pyio", "_pylong", "_pyrepl", "_queue", "_random",
    "_remote_debugging", "_scproxy", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512", "_signal", "_sitebuiltins",
    "_socket", "_sqlite3", "_sre", "_ssl", "_stat", "_statistics", "_string", "_strptime", "_struct", "_suggestions",
    "_symtable", "_sysconfig", "_testbuffer", "_testcapi", "_testclinic", "_testimportmultiple", "_testinternalcapi",
    "_testmultiphase", "_testsinglephase", "_thread", "_threading_local", "_tkinter", "_tokenize", "_tracemalloc",
    "_types", "_typing", "_uuid", "_warnings", "_weakref", "_weakrefset", "_winapi", "_wmi", "_xxinterpchannels",
    "_xxsubinterpreters", "_xxtestfuzz", "_zoneinfo", "_zstd", "abc", "aifc", "annotationlib", "antigravity",
    "anydbm", "argparse", "array", "ast", "asynchat", "asyncio", "asyncore", "atexit", "audioop", "base64", "bdb",
    "binascii", "binhex", "bisect", "builtins", "bz2", "cPickle", "cProfile", "cStringIO", "caffe2", "calendar",
    "cgi", "cgitb", "chunk", "cmath", "cmd", "code", "codecs", "codeop", "collections", "colorsys", "commands",
    "compileall", "compression", "concurrent", "configparser", "contextlib", "contextvars", "copy", "copy_reg",
    "copyreg", "crypt", "csv", "ctypes", "curses", "dataclasses", "datetime", "dbm", "decimal", "difflib", "dis",
    "distutils", "doctest", "dumbdbm", "dummy_thread", "dummy_threading", "email", "encodings", "ensurepip", "enum",
    "errno", "exceptions", "faulthandler", "fcntl", "filecmp", "fileinput", "fnmatch", "formatter", "fractions",
    "ftplib", "functools", "functorch", "future_builtins", "gc", "genericpath", "getopt", "getpass", "gettext",
    "glob", "graphlib", "grp", "gzip", "hashlib", "heapq", "hmac", "html", "http", "idlelib", "imaplib", "imghdr",
    "imp", "importlib", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "lib2to3", "linecache",
    "locale", "logging", "lzma", "macpath", "mailbox", "mailcap", "marshal", "math", "md5", "mimetools", "mimetypes",
    "mmap", "modulefinder", "msilib", "msvcrt", "multiprocessing", "netrc", "new", "nis", "nntplib", "nt", "ntpath",
    "nturl2path", "numbers", "numpy", "opcode", "operator", "optparse", "os", "os2", "ossaudiodev", "parser",
    "pathlib", "pdb", "pickle", "pickletools", "pip", "pipes", "pkg_resources", "pkgutil", "platform", "plistlib",
    "popen2", "poplib", "posix", "posixfile", "posixpath", "pprint", "profile", "pstats", "pty", "pwd", "py_compile",
    "pyclbr", "pydoc", "pydoc_data", "pyexpat", "queue", "quopri", "random", "re", "readline", "reprlib", "resource",
    "rfc822", "rlcompleter", "runpy", "sched", "secrets", "select", "selectors", "sets", "setuptools", "sha",
    "shelve", "shlex", "shutil", "signal", "site", "sitecustomize", "smtpd", "smtplib", "sndhdr", "socket",
    "socketserver", "spwd", "sqlite3", "sre_compile", "sre_constants", "sre_parse", "ssl", "stat", "statistics",
    "string", "stringprep", "struct", "subprocess", "sunau", "symbol", "symtable", "sys", "sysconfig", "syslog",
    "tabnanny", "tarfile", "telnetlib", "tempfile", "termios", "test", "textwrap", "this", "thread", "threading",
    "time", "timeit", "tkinter", "token", "tokenize", "tomllib", "torch", "torchgen", "trace", "traceback",
    "tracemalloc", "tty", "turtle", "turtledemo", "types", "typing", "unicodedata", "unittest", "urllib", "urllib2",
    "urlparse", "user", "usercustomize", "uu", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser",
    "whichdb", "winreg", "winsound", "wsgiref", "xdrlib", "xml", "xmlrpc", "xxlimited", "xxlimited_35", "zipapp",
    "zipfile", "zipimport", "zlib", "zoneinfo",
    // clang-format on
});

static_assert(std::ranges::is_sorted(kRefusedPackages));

// Python 2's and later versions' names of modules that the table knows by another.
std::string_view today(std::string_view module) {
  if (module == "__builtin__") return "builtins";
  if (module == "copy_reg") return "copyreg";
  if (module == "pathlib._local") return "pathlib";
  return module;
}

bool valid_identifier_path(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '<' || c == '>';  // "<locals>" stands in the names of local classes
  });
}

const TorchDtype* storage_of(std::string_view module, std::string_view name) {
  if (module == "torch.storage")
    return name == "UntypedStorage" || name == "TypedStorage" ? torch_dtype("uint8") : nullptr;
  return module == "torch" || module == "torch.cuda" ? storage_dtype(name) : nullptr;
}

}  // namespace

Result<NamedRole> look_up(std::string_view module, std::string_view name) {
  const std::string full = printable(std::string(module) + "." + std::string(name));
  if (module.size() + name.size() > kMaxGlobalBytes || !valid_identifier_path(module) || !valid_identifier_path(name)) {
    return fail(ErrorCode::kInvalidArgument, "its pickle wants '" + full + "', which cannot be a name of Python");
  }
  module = today(module);
  if (module == "torch") {
    if (const TorchDtype* dtype = torch_dtype(name)) return NamedRole{Role::kDtype, dtype};
  }
  if (const TorchDtype* dtype = storage_of(module, name)) return NamedRole{Role::kStorageClass, dtype};
  const auto* const found = std::ranges::find_if(
      kAllowed, [&](const Allowed& allowed) { return allowed.module == module && allowed.name == name; });
  if (found != kAllowed.end()) return NamedRole{found->role};
  if (!std::ranges::binary_search(kRefusedPackages, module.substr(0, module.find('.')))) {
    return NamedRole{Role::kPlaceholder};
  }
  return fail(
      ErrorCode::kInvalidArgument,
      "its pickle wants '" + full + "', which weights do not need; nothing was run. " + save_state_dict_remedy());
}

std::string save_state_dict_remedy() {
  return "If you trust the file, save its weights alone: torch.save(model.state_dict(), ...)";
}

}  // namespace modelbroker::unpickle
