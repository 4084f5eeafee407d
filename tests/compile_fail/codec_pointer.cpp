// expect: A pointer means nothing in another process: pass what it points to
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

#include <vector>

struct Node {
  int value;
  Node* next;
};

std::vector<std::byte> encoded(const std::vector<Node>& nodes) { return bulkhead::to_bytes(nodes); }
