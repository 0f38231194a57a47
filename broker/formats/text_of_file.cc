#include "broker/formats/text_of_file.h"

#include <cstddef>
#include <span>

namespace modelbroker {

Result<std::string> text_of_file(Os& os, int fd, const ByteRange& range, const std::string& label) {
  std::string text(range.size, '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const auto got = os.pread(fd, std::as_writable_bytes(std::span(text)).subspan(done), range.offset + done);
    if (!got) return fail_errno(got.error().number, "reading '" + label + "'");
    if (*got == 0) break;
    done += *got;
  }
  text.resize(done);
  return text;
}

}  // namespace modelbroker
