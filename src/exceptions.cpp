// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/exceptions.hpp>

#include <cxxabi.h>

#include <any>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <ios>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <regex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <typeindex>
#include <typeinfo>
#include <variant>
#include <vector>

#include <boost/asio/error.hpp>
#include <boost/system/system_error.hpp>

namespace bulkhead::detail {
namespace {

// A chain deeper than this is a defect of the thrower; its outer links say enough.
constexpr std::size_t kMostCauses = 32;
// A text longer than this is not a message any more; it is cut.
constexpr std::size_t kLongestWhat = 64 * 1024;

struct Registry {
  std::mutex mutex;
  std::map<std::string, ExceptionCarrier> by_name;  // type_info::name()
};

template <class E>
void add_fixed(Registry& registry) {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(E);
  carrier.encode = [](Encoder&, const void*) {};
  carrier.rebuild = [](Decoder&, const std::string&, std::exception_ptr cause) { return with_cause(E(), cause); };
  registry.by_name[typeid(E).name()] = carrier;
}

template <class E>
void add_with_text(Registry& registry) {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(E);
  carrier.encode = [](Encoder&, const void*) {};
  carrier.rebuild = [](Decoder&, const std::string& what, std::exception_ptr cause) {
    return with_cause(E(what), cause);
  };
  registry.by_name[typeid(E).name()] = carrier;
}

// Its text cannot be given; the usual one is had by making the usual mistake.
void add_bad_variant_access(Registry& registry) {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(std::bad_variant_access);
  carrier.encode = [](Encoder&, const void*) {};
  carrier.rebuild = [](Decoder&, const std::string& what, std::exception_ptr cause) {
    try {
      if (what != std::bad_variant_access().what()) static_cast<void>(std::get<0>(std::variant<int, char>(' ')));
    } catch (const std::bad_variant_access& usual) {
      if (what == usual.what()) return with_cause(usual, cause);
    }
    return with_cause(std::bad_variant_access(), cause);
  };
  registry.by_name[typeid(std::bad_variant_access).name()] = carrier;
}

// system_errors build what() from a text and the code's message: what was thrown is carried without the message, so
// that it is not there twice.
template <class Code>
std::string without_message(const std::string& what, const Code& code) {
  const std::string message = code.message();
  const std::size_t at = what.rfind(message);
  if (message.empty() || at == std::string::npos) return what;
  std::string text = what.substr(0, at);
  while (!text.empty() && (text.back() == ' ' || text.back() == ':')) text.pop_back();
  return text;
}

const std::error_category* std_category(const std::string& name) {
  static const std::error_category* const known[] = {&std::generic_category(), &std::system_category(),
                                                     &std::iostream_category(), &std::future_category()};
  for (const auto* category : known) {
    if (name == category->name()) return category;
  }
  return nullptr;
}

const boost::system::error_category* boost_category(const std::string& name) {
  static const boost::system::error_category* const known[] = {
      &boost::system::generic_category(), &boost::system::system_category(),     &asio::error::get_misc_category(),
      &asio::error::get_netdb_category(), &asio::error::get_addrinfo_category(), &error_category()};
  for (const auto* category : known) {
    if (name == category->name()) return category;
  }
  return nullptr;
}

template <class E>
void encode_code(Encoder& encoder, const E& error) {
  bulkhead::encode(encoder, std::string(error.code().category().name()));
  bulkhead::encode(encoder, static_cast<std::int32_t>(error.code().value()));
  bulkhead::encode(encoder, without_message(error.what(), error.code()));
}

struct CarriedCode {
  std::string category;
  std::int32_t value;
  std::string text;
};

CarriedCode decode_code(Decoder& decoder) {
  CarriedCode code;
  code.category = bulkhead::decode<std::string>(decoder);
  code.value = bulkhead::decode<std::int32_t>(decoder);
  code.text = bulkhead::decode<std::string>(decoder);
  return code;
}

std::error_code std_code(const CarriedCode& carried) {
  const std::error_category* category = std_category(carried.category);
  if (category == nullptr) throw std::runtime_error("unknown error category " + carried.category);
  return {carried.value, *category};
}

void add_system_errors(Registry& registry) {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(std::system_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const std::system_error*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    return with_cause(carried.text.empty() ? std::system_error(std_code(carried))
                                           : std::system_error(std_code(carried), carried.text),
                      cause);
  };
  registry.by_name[typeid(std::system_error).name()] = carrier;

  carrier.type = &typeid(std::ios_base::failure);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const std::ios_base::failure*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    return with_cause(std::ios_base::failure(carried.text, std_code(carried)), cause);
  };
  registry.by_name[typeid(std::ios_base::failure).name()] = carrier;

  carrier.type = &typeid(std::future_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const std::future_error*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    return with_cause(std::future_error(static_cast<std::future_errc>(carried.value)), cause);
  };
  registry.by_name[typeid(std::future_error).name()] = carrier;

  carrier.type = &typeid(std::filesystem::filesystem_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    const auto& error = *static_cast<const std::filesystem::filesystem_error*>(exception);
    encode_code(encoder, error);
    bulkhead::encode(encoder, error.path1());
    bulkhead::encode(encoder, error.path2());
  };
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    const auto path1 = bulkhead::decode<std::filesystem::path>(decoder);
    const auto path2 = bulkhead::decode<std::filesystem::path>(decoder);
    // what() is "filesystem error: TEXT: MESSAGE [PATH1] [PATH2]"; only TEXT is ours to give.
    constexpr std::string_view prefix = "filesystem error: ";
    std::string text = what.starts_with(prefix) ? what.substr(prefix.size()) : what;
    text = text.substr(0, text.find(std_code(carried).message()));
    while (!text.empty() && (text.back() == ' ' || text.back() == ':')) text.pop_back();
    return with_cause(std::filesystem::filesystem_error(text, path1, path2, std_code(carried)), cause);
  };
  registry.by_name[typeid(std::filesystem::filesystem_error).name()] = carrier;

  carrier.type = &typeid(boost::system::system_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const boost::system::system_error*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    const auto* category = boost_category(carried.category);
    if (category == nullptr) throw std::runtime_error("unknown error category " + carried.category);
    const boost::system::error_code code(carried.value, *category);
    return with_cause(
        carried.text.empty() ? boost::system::system_error(code) : boost::system::system_error(code, carried.text),
        cause);
  };
  registry.by_name[typeid(boost::system::system_error).name()] = carrier;

  carrier.type = &typeid(std::regex_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    bulkhead::encode(encoder, static_cast<std::int32_t>(static_cast<const std::regex_error*>(exception)->code()));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const auto code = bulkhead::decode<std::int32_t>(decoder);
    return with_cause(std::regex_error(static_cast<std::regex_constants::error_type>(code)), cause);
  };
  registry.by_name[typeid(std::regex_error).name()] = carrier;

  carrier.type = &typeid(SerializationError);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    const auto& error = *static_cast<const SerializationError*>(exception);
    bulkhead::encode(encoder, static_cast<std::int32_t>(error.part()));
    bulkhead::encode(encoder, error.type_name());
    bulkhead::encode(encoder, error.reason());
  };
  carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
    const auto part = static_cast<SerializationError::Part>(bulkhead::decode<std::int32_t>(decoder));
    const auto type = bulkhead::decode<std::string>(decoder);
    const auto reason = bulkhead::decode<std::string>(decoder);
    return with_cause(SerializationError(part, type, reason), cause);
  };
  registry.by_name[typeid(SerializationError).name()] = carrier;
}

Registry& registry() {
  // Not destroyed at exit: tasks may end later than static objects.
  static auto& registry = *[] {
    auto* made = new Registry;
    add_fixed<std::exception>(*made);
    add_fixed<std::bad_exception>(*made);
    add_fixed<std::bad_alloc>(*made);
    add_fixed<std::bad_array_new_length>(*made);
    add_fixed<std::bad_cast>(*made);
    add_fixed<std::bad_typeid>(*made);
    add_fixed<std::bad_function_call>(*made);
    add_fixed<std::bad_weak_ptr>(*made);
    add_fixed<std::bad_optional_access>(*made);
    add_bad_variant_access(*made);
    add_fixed<std::bad_any_cast>(*made);
    add_with_text<std::logic_error>(*made);
    add_with_text<std::domain_error>(*made);
    add_with_text<std::invalid_argument>(*made);
    add_with_text<std::length_error>(*made);
    add_with_text<std::out_of_range>(*made);
    add_with_text<std::runtime_error>(*made);
    add_with_text<std::range_error>(*made);
    add_with_text<std::overflow_error>(*made);
    add_with_text<std::underflow_error>(*made);
    add_system_errors(*made);
    return made;
  }();
  return registry;
}

std::optional<ExceptionCarrier> find_carrier(const std::string& mangled_name) {
  Registry& known = registry();
  const std::lock_guard lock(known.mutex);
  const auto found = known.by_name.find(mangled_name);
  if (found == known.by_name.end()) return std::nullopt;
  return found->second;
}

std::string cut(std::string text) {
  if (text.size() > kLongestWhat) text.resize(kLongestWhat);
  return text;
}

// One link of the chain, as it is seen while it is being handled.
struct Link {
  std::string mangled_type;
  std::string what;
  std::vector<std::byte> payload;
  bool has_payload = false;
  std::exception_ptr cause;
};

// throw_with_nested throws a class of its own that derives from the exception and from nested_exception: the type that
// counts is the exception's.
std::string unwrapped_type(const std::type_info& type) {
  const std::string name = type.name();
  const std::string demangled = demangle(name.c_str());
  constexpr std::string_view wrapper = "std::_Nested_exception<";
  if (!demangled.starts_with(wrapper)) return name;
  const auto* class_type = dynamic_cast<const abi::__vmi_class_type_info*>(&type);
  if (class_type != nullptr && class_type->__base_count > 0) return class_type->__base_info[0].__base_type->name();
  return name;
}

void read_payload(Link& link, const void* exception) {
  const auto carrier = find_carrier(link.mangled_type);
  if (!carrier) return;
  try {
    Encoder counting{std::span<std::byte>()};
    carrier->encode(counting, exception);
    link.payload.resize(counting.size());
    Encoder writing{std::span<std::byte>(link.payload)};
    carrier->encode(writing, exception);
    link.has_payload = true;
  } catch (const std::exception& error) {
    // Its type is lost, not its text: it arrives as a RemoteTaskError.
    link.payload.clear();
    link.what += std::string(" (and its members could not be carried: ") + error.what() + ")";
  }
}

Link link_of(const std::exception_ptr& exception) {
  Link link;
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    const std::type_info* type = abi::__cxa_current_exception_type();
    link.mangled_type = unwrapped_type(*type);
    link.what = cut(error.what());
    if (const auto* nested = dynamic_cast<const std::nested_exception*>(&error)) link.cause = nested->nested_ptr();
    // dynamic_cast to the complete object; for the wrapper of throw_with_nested, the exception is its first base and
    // lies at the same address.
    read_payload(link, dynamic_cast<const void*>(&error));
  } catch (const std::string& text) {
    link.mangled_type = typeid(std::string).name();
    link.what = cut(text);
  } catch (const char* text) {
    link.mangled_type = typeid(const char*).name();
    link.what = cut(text);
  } catch (...) {
    const std::type_info* type = abi::__cxa_current_exception_type();
    link.mangled_type = type != nullptr ? type->name() : "foreign exception";
  }
  return link;
}

std::vector<Link> chain_of(const std::exception_ptr& exception) {
  std::vector<Link> chain;
  for (std::exception_ptr next = exception; next && chain.size() < kMostCauses; next = chain.back().cause) {
    chain.push_back(link_of(next));
  }
  return chain;
}

}  // namespace

bool register_exception(const ExceptionCarrier& carrier) {
  Registry& known = registry();
  const std::lock_guard lock(known.mutex);
  known.by_name[carrier.type->name()] = carrier;
  return true;
}

void encode_exception(Encoder& encoder, const std::exception_ptr& exception) {
  const std::vector<Link> chain = chain_of(exception);
  encoder.write_size(chain.size());
  for (const Link& link : chain) {
    bulkhead::encode(encoder, link.mangled_type);
    bulkhead::encode(encoder, link.what);
    bulkhead::encode(encoder, link.has_payload);
    bulkhead::encode(encoder, link.payload);
  }
}

std::exception_ptr decode_exception(Decoder& decoder, const ErrorContext& context) {
  const std::uint64_t count = decoder.read_size();
  if (count == 0 || count > kMostCauses) {
    throw SerializationError(SerializationError::Part::exception, "",
                             "a chain of " + std::to_string(count) + " exceptions is impossible", context);
  }
  std::vector<Link> chain;
  std::vector<ExceptionDescription> descriptions;
  for (std::uint64_t i = 0; i < count; ++i) {
    Link link;
    link.mangled_type = bulkhead::decode<std::string>(decoder);
    link.what = bulkhead::decode<std::string>(decoder);
    link.has_payload = bulkhead::decode<bool>(decoder);
    link.payload = bulkhead::decode<std::vector<std::byte>>(decoder);
    descriptions.push_back({demangle(link.mangled_type.c_str()), link.what});
    chain.push_back(std::move(link));
  }
  // From the innermost outwards: each is built around its cause.
  std::exception_ptr built;
  for (std::size_t i = chain.size(); i-- > 0;) {
    const auto carrier = chain[i].has_payload ? find_carrier(chain[i].mangled_type) : std::nullopt;
    std::exception_ptr rebuilt;
    if (carrier) {
      try {
        Decoder payload(chain[i].payload);
        rebuilt = carrier->rebuild(payload, chain[i].what, built);
      } catch (const std::exception& error) {
        descriptions[i].what += std::string(" (and could not be rebuilt: ") + error.what() + ")";
      }
    }
    if (!rebuilt) {
      rebuilt = with_cause(
          RemoteTaskError(descriptions[i],
                          {descriptions.begin() + static_cast<std::ptrdiff_t>(i) + 1, descriptions.end()}, context),
          built);
    }
    built = std::move(rebuilt);
  }
  return built;
}

std::string describe_exception(const std::exception_ptr& exception) {
  std::string text;
  for (const Link& link : chain_of(exception)) {
    if (!text.empty()) text += "; caused by ";
    text += demangle(link.mangled_type.c_str());
    if (!link.what.empty()) text += ": " + link.what;
  }
  return text;
}

}  // namespace bulkhead::detail
