// expect: make it a plain aggregate, add a member function template serialize(Archive&), or specialise
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

#include <functional>

struct Button {
  int id;
  std::function<void()> on_click;
};

void encode_button(bulkhead::Encoder& encoder, const Button& button) { bulkhead::encode(encoder, button); }
