// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "descriptor_watch.hpp"
#include "process/posix.hpp"

#include <boost/asio/io_context.hpp>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

namespace bulkhead::detail {

/// Reads what a worker prints, keeps the end of it, and passes it on to the program's standard error if that is asked
/// for: in whole lines, so that those of workers which print at the same time do not mix. What has no end of line yet
/// waits for it, or for the worker's end, up to 64 KiB of it. While nobody takes it there, it is not read, and the
/// worker waits, as it would without this.
///
/// It reads on the background thread and never blocks. Thread-safe.
class WorkerOutput : public std::enable_shared_from_this<WorkerOutput> {
 public:
  WorkerOutput(boost::asio::io_context& background, process::FileDescriptor pipe, bool pass_on);
  ~WorkerOutput();
  WorkerOutput(const WorkerOutput&) = delete;
  WorkerOutput& operator=(const WorkerOutput&) = delete;

  void start();
  /// Reads what is there, and passes on what can be; the end of all that was read.
  std::string tail();
  /// The worker has ended: what it has printed is still passed on, and the pipe is closed. A process that it has left
  /// behind must cost no descriptor, and gets SIGPIPE when it prints.
  void end();

 private:
  void wait();
  bool read_some();
  void read_all();
  std::size_t whole_lines() const;
  bool take_turn();
  void give_turn_back();
  bool pass_on();

  boost::asio::io_context& background_;
  const bool passes_on_;
  std::mutex mutex_;
  process::FileDescriptor pipe_;
  process::FileDescriptor to_wait_for_;
  std::unique_ptr<DescriptorWatch> readable_;
  std::unique_ptr<DescriptorWatch> writable_;
  std::size_t read_ = 0;  // in all
  std::string tail_;
  std::string held_;           // read and not passed on yet
  std::size_t unwritten_ = 0;  // of it, the lines that are being written
  bool ended_ = false;
};

}  // namespace bulkhead::detail
