// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/exceptions.hpp>

#include <cxxabi.h>

#include <algorithm>
#include <any>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <ios>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <regex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <typeindex>
#include <typeinfo>
#include <utility>
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

// An E with the text that was thrown. What the constructors of some standard exceptions make of their arguments is not
// always what their thrower had made.
template <class E>
class WithText : public E {
 public:
  WithText(E&& error, const std::string& what) : E(std::move(error)), what_(std::make_shared<std::string>(what)) {}
  const char* what() const noexcept override { return what_->c_str(); }

 private:
  std::shared_ptr<const std::string> what_;  // shared, since exceptions are copied where nothing may throw
};

// The first candidate whose what() is the original's; if there is none, the last with the text put over it.
template <class E, class... More>
std::exception_ptr rebuilt(const std::string& what, const std::exception_ptr& cause, E candidate, More... more) {
  if (candidate.what() == what) return with_cause(std::move(candidate), cause);
  if constexpr (sizeof...(more) > 0) {
    return rebuilt(what, cause, std::move(more)...);
  } else {
    return with_cause(WithText<E>(std::move(candidate), what), cause);
  }
}

// The thrower's own words in a what() that ends with the message of its code.
std::string own_words(std::string what, const std::string& message) {
  if (!what.ends_with(": " + message)) return {};
  what.resize(what.size() - message.size() - 2);
  return what;
}

template <class E>
void add_fixed(Registry& registry) {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(E);
  carrier.encode = [](Encoder&, const void*) {};
  carrier.rebuild = [](Decoder&, const std::string& what, std::exception_ptr cause) {
    return rebuilt(what, cause, E());
  };
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
}

struct CarriedCode {
  std::string category;
  std::int32_t value;
};

CarriedCode decode_code(Decoder& decoder) {
  CarriedCode code;
  code.category = bulkhead::decode<std::string>(decoder);
  code.value = bulkhead::decode<std::int32_t>(decoder);
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
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    const std::error_code code = std_code(carried);
    return rebuilt(what, cause, std::system_error(code), std::system_error(code, own_words(what, code.message())));
  };
  registry.by_name[typeid(std::system_error).name()] = carrier;

  carrier.type = &typeid(std::ios_base::failure);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const std::ios_base::failure*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    const std::error_code code = std_code(carried);
    return rebuilt(what, cause, std::ios_base::failure(own_words(what, code.message()), code));
  };
  registry.by_name[typeid(std::ios_base::failure).name()] = carrier;

  carrier.type = &typeid(std::future_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const std::future_error*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    return rebuilt(what, cause, std::future_error(static_cast<std::future_errc>(carried.value)));
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
    using Error = std::filesystem::filesystem_error;
    const std::error_code code = std_code(carried);
    // "filesystem error: WORDS: MESSAGE [PATH1] [PATH2]"
    constexpr std::string_view prefix = "filesystem error: ";
    const std::size_t end = what.find(": " + code.message(), prefix.size());
    const std::string words =
        what.starts_with(prefix) && end != std::string::npos ? what.substr(prefix.size(), end - prefix.size()) : "";
    return rebuilt(what, cause, Error(words, path1, path2, code), Error(words, path1, code), Error(words, code));
  };
  registry.by_name[typeid(std::filesystem::filesystem_error).name()] = carrier;

  carrier.type = &typeid(boost::system::system_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    encode_code(encoder, *static_cast<const boost::system::system_error*>(exception));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    const CarriedCode carried = decode_code(decoder);
    const auto* category = boost_category(carried.category);
    if (category == nullptr) throw std::runtime_error("unknown error category " + carried.category);
    const boost::system::error_code code(carried.value, *category);
    const boost::system::system_error plain(code);
    return rebuilt(what, cause, plain, boost::system::system_error(code, own_words(what, plain.what())));
  };
  registry.by_name[typeid(boost::system::system_error).name()] = carrier;

  carrier.type = &typeid(std::regex_error);
  carrier.encode = [](Encoder& encoder, const void* exception) {
    bulkhead::encode(encoder, static_cast<std::int32_t>(static_cast<const std::regex_error*>(exception)->code()));
  };
  carrier.rebuild = [](Decoder& decoder, const std::string& what, std::exception_ptr cause) {
    namespace rc = std::regex_constants;
    static constexpr rc::error_type known[] = {
        rc::error_collate,   rc::error_ctype,      rc::error_escape,   rc::error_backref, rc::error_brack,
        rc::error_paren,     rc::error_brace,      rc::error_badbrace, rc::error_range,   rc::error_space,
        rc::error_badrepeat, rc::error_complexity, rc::error_stack};
    const auto code = bulkhead::decode<std::int32_t>(decoder);
    for (const rc::error_type one : known) {
      if (static_cast<std::int32_t>(one) == code) return rebuilt(what, cause, std::regex_error(one));
    }
    throw std::runtime_error("unknown error of a regular expression " + std::to_string(code));
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
    if (part < SerializationError::Part::value || part > SerializationError::Part::exception) {
      throw std::runtime_error("unknown part of a task " + std::to_string(static_cast<int>(part)));
    }
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
    add_fixed<std::bad_variant_access>(*made);
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
  // As one writes it. From a worker: empty if the type's own way to travel was known there.
  std::string type;
  std::string what;
  std::vector<std::byte> payload;
  bool has_payload = false;
  std::exception_ptr cause;
};

// An exception's type, and where its object begins.
struct Seen {
  const std::type_info* type;
  const char* object;
};

// Libraries throw classes of their own that derive from the exception that is meant, and from others: the type that
// counts is the exception's. It is the first base but for those that wrappers add.
Seen unwrapped(Seen seen) {
  static constexpr std::string_view wrappers[] = {"std::_Nested_exception<", "boost::wrapexcept<", "std::__ios_failure",
                                                  "bulkhead::detail::(anonymous namespace)::WithText<"};
  static constexpr std::string_view added[] = {"std::nested_exception", "boost::exception",
                                               "boost::exception_detail::clone_base"};
  const std::string name = demangle(seen.type->name());
  if (std::none_of(std::begin(wrappers), std::end(wrappers), [&](auto prefix) { return name.starts_with(prefix); })) {
    return seen;
  }
  if (const auto* single = dynamic_cast<const abi::__si_class_type_info*>(seen.type)) {
    return unwrapped({single->__base_type, seen.object});
  }
  const auto* several = dynamic_cast<const abi::__vmi_class_type_info*>(seen.type);
  if (several == nullptr) return seen;
  for (unsigned i = 0; i < several->__base_count; ++i) {
    const abi::__base_class_type_info& base = several->__base_info[i];
    if (std::count(std::begin(added), std::end(added), demangle(base.__base_type->name())) > 0) continue;
    return unwrapped({base.__base_type, seen.object == nullptr ? nullptr : seen.object + base.__offset()});
  }
  return seen;
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

// The type of what is being handled, without its wrapper.
std::string current_type() {
  const std::type_info* type = abi::__cxa_current_exception_type();
  return type != nullptr ? unwrapped({type, nullptr}).type->name() : "foreign exception";
}

Link link_of(const std::exception_ptr& exception) {
  Link link;
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    // dynamic_cast to the complete object.
    const Seen seen =
        unwrapped({abi::__cxa_current_exception_type(), static_cast<const char*>(dynamic_cast<const void*>(&error))});
    link.mangled_type = seen.type->name();
    link.what = error.what() != nullptr ? cut(error.what()) : "";
    if (const auto* nested = dynamic_cast<const std::nested_exception*>(&error)) link.cause = nested->nested_ptr();
    read_payload(link, seen.object);
  } catch (const std::string& text) {
    link.mangled_type = typeid(std::string).name();
    link.what = cut(text);
  } catch (const char* text) {
    link.mangled_type = current_type();
    if (text != nullptr) link.what = cut(text);
  } catch (const std::nested_exception& nested) {
    link.mangled_type = current_type();
    link.cause = nested.nested_ptr();
  } catch (...) {
    link.mangled_type = current_type();
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
    // Demangled here and not by the host: it takes a mangled name of 300 bytes to fill all of its memory.
    bulkhead::encode(encoder, link.has_payload ? std::string() : cut(demangle(link.mangled_type.c_str())));
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
  std::vector<std::optional<ExceptionCarrier>> carriers;
  std::vector<ExceptionDescription> descriptions;
  for (std::uint64_t i = 0; i < count; ++i) {
    Link link;
    link.mangled_type = bulkhead::decode<std::string>(decoder);
    link.type = bulkhead::decode<std::string>(decoder);
    link.what = bulkhead::decode<std::string>(decoder);
    link.has_payload = bulkhead::decode<bool>(decoder);
    link.payload = bulkhead::decode<std::vector<std::byte>>(decoder);
    carriers.push_back(link.has_payload ? find_carrier(link.mangled_type) : std::nullopt);
    if (carriers.back()) link.type = demangle(carriers.back()->type->name());
    descriptions.push_back({link.type.empty() ? link.mangled_type : link.type, link.what});
    chain.push_back(std::move(link));
  }
  // From the innermost outwards: each is built around its cause.
  std::exception_ptr built;
  for (std::size_t i = chain.size(); i-- > 0;) {
    std::exception_ptr rebuilt;
    if (carriers[i]) {
      try {
        // It is a copy already, but may demand no more memory than the answer around it.
        Decoder payload(chain[i].payload, Decoder::Source::untrusted);
        rebuilt = carriers[i]->rebuild(payload, chain[i].what, built);
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
