// ModelSources: the files of a model, looked at before anything is decided about its load: one file, or those that an
// index names.
//
// The files of a set lie beside its index, by plain names. All headers are read here, so that nothing is loaded of a
// set of which a tensor is missing or stands in two files. Threads: any; it is a job's, for files may lie on a file
// system that hangs. Failure: as look_at_source(), read_set_index() and read_directory(); not_found for a file that the
// index names and nobody handed in, data_loss for tensors that do not fit the index.
#pragma once

#include <string>
#include <vector>

#include "broker/ram/source_look.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

// Handed in with a request. An empty name: the file that the request's path names.
struct OfferedSource {
  Fd file;
  std::string name;
};

struct SourcePart {
  Fd file;
  std::string path;  // where it is, or a label
  Look look;
};

struct ModelSources {
  std::vector<SourcePart> parts;  // in the order of their names
  bool is_set = false;
  bool is_label = false;  // the path of the request, see GivenName
};

// What was not handed in is opened by the broker.
[[nodiscard]] Result<ModelSources> look_at_sources(Os& os, const LookOrder& order, std::vector<OfferedSource> offered);

}  // namespace modelbroker
