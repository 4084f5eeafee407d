// SPDX-License-Identifier: BSL-1.0
#include "task_queue.hpp"

#include <iterator>

namespace bulkhead::detail {

void TaskQueue::enqueue(QueuedTask& task) {
  number(task);
  Level& level = levels_[task.priority];
  ++size_;
  // From the back: new tasks belong there. One that was taken back finds its old place from the front.
  QueuedTask* before = level.back();
  if (before == nullptr || before->order < task.order) {
    level.push_back(task);
    return;
  }
  QueuedTask* after = level.front();
  if (task.order < after->order) {
    level.push_front(task);
    return;
  }
  while (level.next(*after)->order < task.order) after = level.next(*after);
  level.insert_after(*after, task);
}

void TaskQueue::remove(QueuedTask& task) {
  task.unlink();
  --size_;
}

QueuedTask* TaskQueue::front() {
  if (size_ == 0) return nullptr;
  for (auto level = levels_.begin(); level != levels_.end();) {
    if (QueuedTask* task = level->second.front()) return task;
    // Level 0 is the usual one and stays; others would pile up with callers that use many.
    level = level->first == 0 ? std::next(level) : levels_.erase(level);
  }
  return nullptr;
}

const QueuedTask* TaskQueue::front() const {
  for (const auto& [priority, level] : levels_) {
    if (const QueuedTask* task = level.front()) return task;
  }
  return nullptr;
}

}  // namespace bulkhead::detail
