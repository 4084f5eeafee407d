// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/any_io_executor.hpp>

namespace bulkhead {

/// Runs each task at once, on the thread that submits it: for debugging, and for tests of code that submits tasks. The
/// caller's thread is busy until the function returns, so that nothing can be cancelled or told meanwhile; a run that
/// took longer than its `timeout` fails all the same. Takes any callable; nothing is encoded (LocalExecutor's bypass
/// mode does that).
///
/// Thread safety: as BaseExecutor.
class BULKHEAD_EXPORT InlineExecutor final : public BaseExecutor, public TaskInterface<InlineExecutor, PlainCall> {
 public:
  using Tasks = TaskInterface<InlineExecutor, PlainCall>;
  using Tasks::async_submit;
  using Tasks::map;
  using Tasks::map_stream;
  using Tasks::spawn;
  using Tasks::submit;
  using Tasks::submit_after;
  using Tasks::submit_at;
  using Tasks::submit_every;
  using Tasks::operator();

  /// Throws `std::invalid_argument` with the option's name and range.
  explicit InlineExecutor(asio::any_io_executor io_executor, CommonOptions options = {});
  ~InlineExecutor() override;

 protected:
  void execute(Task task) override;
  void add_metrics(Metrics& metrics) const override;
};

}  // namespace bulkhead
