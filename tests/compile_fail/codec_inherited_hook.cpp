// expect: inherits its serialize(Archive&), which would lose its own members
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

struct Named {
  std::string name;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(name);
  }
};
struct Person : Named {
  int age;
};

void encode_person(bulkhead::Encoder& encoder, const Person& person) { bulkhead::encode(encoder, person); }
