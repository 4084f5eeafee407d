// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/result_store.hpp>

#include <bulkhead/detail/task_record.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bulkhead {
namespace {

using Clock = std::chrono::steady_clock;
using Record = std::shared_ptr<detail::TaskRecord>;

const ResultStoreOptions& checked(const ResultStoreOptions& options) {
  const auto require = [](bool good, const char* option) {
    if (!good) throw std::invalid_argument(fmt::format("option '{}' of a ResultStore must be more than zero", option));
  };
  require(options.max_results > 0, "max_results");
  require(options.max_bytes > 0, "max_bytes");
  require(options.time_to_live.count() > 0, "time_to_live");
  return options;
}

}  // namespace

struct ResultStore::State {
  struct Entry {
    Record record;
    std::size_t bytes = 0;
    Clock::time_point finished_at;
    std::list<TaskId>::iterator place;  // in `order`, once it is over
    bool over = false;
  };
  using Entries = std::unordered_map<TaskId, Entry>;

  explicit State(const ResultStoreOptions& limits) : options(limits) {}

  // The record goes into `dropped`: its result is destroyed without the mutex, since that is user code.
  void drop(Entries::iterator entry, std::vector<Record>& dropped) {
    bytes -= entry->second.bytes;
    order.erase(entry->second.place);
    dropped.push_back(std::move(entry->second.record));
    entries.erase(entry);
  }

  void keep_limits(std::vector<Record>& dropped) {
    const auto oldest_kept = Clock::now() - options.time_to_live;
    while (!order.empty()) {
      const auto oldest = entries.find(order.front());
      const bool over = order.size() > options.max_results || bytes > options.max_bytes;
      if (!over && oldest->second.finished_at >= oldest_kept) return;
      drop(oldest, dropped);
    }
  }

  const ResultStoreOptions options;
  std::mutex mutex;
  Entries entries;
  std::list<TaskId> order;  // of those that are over, the oldest first
  std::size_t bytes = 0;
};

ResultStore::ResultStore(ResultStoreOptions options) : state_(std::make_unique<State>(checked(options))) {}
ResultStore::~ResultStore() = default;

std::size_t ResultStore::size() const {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  state_->keep_limits(dropped);
  return state_->order.size();
}

std::size_t ResultStore::bytes() const {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  state_->keep_limits(dropped);
  return state_->bytes;
}

std::size_t ResultStore::unfinished() const {
  const std::lock_guard lock(state_->mutex);
  return state_->entries.size() - state_->order.size();
}

std::vector<TaskInfo> ResultStore::list(std::optional<TaskStatus> status, std::size_t limit) const {
  std::vector<Record> dropped;
  std::vector<Record> records;
  {
    const std::lock_guard lock(state_->mutex);
    state_->keep_limits(dropped);
    for (const auto& [id, entry] : state_->entries) records.push_back(entry.record);
  }
  // Without the mutex, since each asks its executor.
  if (status) std::erase_if(records, [&](const Record& record) { return record->status() != *status; });
  std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
    return std::tuple(b->spawned_ns(), b->id()) < std::tuple(a->spawned_ns(), a->id());
  });
  if (records.size() > limit) records.resize(limit);
  std::vector<TaskInfo> infos;
  infos.reserve(records.size());
  for (const Record& record : records) {
    TaskInfo info = record->info();
    // It may have gone on meanwhile.
    if (!status || info.status == *status) infos.push_back(std::move(info));
  }
  return infos;
}

bool ResultStore::remove(const TaskId& id) {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->entries.find(id);
  if (found == state_->entries.end() || !found->second.over) return false;
  state_->drop(found, dropped);
  return true;
}

std::size_t ResultStore::clear() {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  while (!state_->order.empty()) state_->drop(state_->entries.find(state_->order.front()), dropped);
  return dropped.size();
}

bool ResultStore::add(const Record& record) {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  state_->keep_limits(dropped);
  // The id of a task that was refused is free for another attempt.
  const auto known = state_->entries.find(record->id());
  if (known != state_->entries.end() && known->second.over && known->second.record->refused()) {
    state_->drop(known, dropped);
  }
  State::Entry entry;
  entry.record = record;
  return state_->entries.emplace(record->id(), std::move(entry)).second;
}

void ResultStore::finished(const TaskId& id, std::size_t bytes) {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->entries.find(id);
  if (found == state_->entries.end() || found->second.over) return;
  State::Entry& entry = found->second;
  entry.over = true;
  entry.bytes = bytes;
  entry.finished_at = Clock::now();
  entry.place = state_->order.insert(state_->order.end(), id);
  state_->bytes += bytes;
  // One that would not fit into an empty store is not to cost all the others.
  if (bytes > state_->options.max_bytes) state_->drop(found, dropped);
  state_->keep_limits(dropped);
}

std::shared_ptr<detail::TaskRecord> ResultStore::find(const TaskId& id) const {
  std::vector<Record> dropped;
  const std::lock_guard lock(state_->mutex);
  state_->keep_limits(dropped);
  const auto found = state_->entries.find(id);
  return found == state_->entries.end() ? nullptr : found->second.record;
}

}  // namespace bulkhead
