// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>

namespace bulkhead::detail {

// A place in one list. A node is in at most one list per link, and knows whether it is in one.
struct ListLink {
  ListLink* next = nullptr;
  ListLink* previous = nullptr;

  ListLink() noexcept = default;
  ListLink(const ListLink&) = delete;
  ListLink& operator=(const ListLink&) = delete;

  bool linked() const noexcept { return next != nullptr; }

  void unlink() noexcept {
    previous->next = next;
    next->previous = previous;
    next = previous = nullptr;
  }
};

// A list that neither allocates nor owns. `Tag` tells apart the several links that one node may have.
template <class T, class Link>
class IntrusiveList {
 public:
  IntrusiveList() noexcept { head_.next = head_.previous = &head_; }

  bool empty() const noexcept { return head_.next == &head_; }
  T* front() noexcept { return empty() ? nullptr : owner(head_.next); }
  const T* front() const noexcept { return empty() ? nullptr : owner(head_.next); }
  T* back() noexcept { return empty() ? nullptr : owner(head_.previous); }
  T* next(T& node) noexcept {
    ListLink* following = static_cast<Link&>(node).next;
    return following == &head_ ? nullptr : owner(following);
  }
  T* previous(T& node) noexcept {
    ListLink* preceding = static_cast<Link&>(node).previous;
    return preceding == &head_ ? nullptr : owner(preceding);
  }

  void push_back(T& node) noexcept { insert(head_.previous, static_cast<Link&>(node)); }
  void push_front(T& node) noexcept { insert(&head_, static_cast<Link&>(node)); }
  void insert_after(T& position, T& node) noexcept { insert(&static_cast<Link&>(position), static_cast<Link&>(node)); }

  T* pop_front() noexcept {
    T* node = front();
    if (node != nullptr) static_cast<Link&>(*node).unlink();
    return node;
  }

  static void erase(T& node) noexcept { static_cast<Link&>(node).unlink(); }

 private:
  static T* owner(ListLink* link) noexcept { return static_cast<T*>(static_cast<Link*>(link)); }

  static void insert(ListLink* after, ListLink& link) noexcept {
    link.next = after->next;
    link.previous = after;
    after->next->previous = &link;
    after->next = &link;
  }

  ListLink head_;
};

}  // namespace bulkhead::detail
