// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

#include <malloc.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <bitset>
#include <chrono>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <forward_list>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <stack>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"

using namespace bulkhead;
using Catch::Matchers::ContainsSubstring;

namespace elsewhere_base {
struct FreeBase {
  int a = 0;
};
template <class Archive>
void serialize(Archive& archive, FreeBase& value) {
  archive(value.a);
}
struct LosesFree : FreeBase {
  int lost = 0;
};
}  // namespace elsewhere_base

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BULKHEAD_TEST_UNDER_TSAN
#endif
#elif defined(__SANITIZE_THREAD__)
#define BULKHEAD_TEST_UNDER_TSAN
#endif

// Counts what is allocated, to see that hostile messages cannot take much. ThreadSanitizer does not let a program
// replace these operators; there the other checks of the same tests remain.
namespace {
std::atomic<std::size_t> allocated = 0;  // ever
std::atomic<std::size_t> live = 0;       // now
std::atomic<std::size_t> peak = 0;       // the most that was live since this was last set

[[maybe_unused]] void release(void* memory) noexcept {
  live -= memory != nullptr ? ::malloc_usable_size(memory) : 0;
  std::free(memory);
}
}  // namespace

#ifdef BULKHEAD_TEST_UNDER_TSAN
constexpr bool kCountsAllocations = false;
#else
constexpr bool kCountsAllocations = true;
// Not inline: g++ 12 takes the pair of malloc and delete for a mistake.
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = std::malloc(size != 0 ? size : 1);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  allocated += size;
  live += ::malloc_usable_size(memory);
  if (peak < live) {
    peak = live.load();
  }
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return operator new(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { release(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { release(memory); }
#endif

namespace {

template <class T>
T round_trip(const T& value) {
  const std::vector<std::byte> bytes = to_bytes(value);
  // Also from where nothing is aligned.
  std::vector<std::byte> shifted(1);
  shifted.insert(shifted.end(), bytes.begin(), bytes.end());
  (void)from_bytes<T>(std::span(shifted).subspan(1));
  return from_bytes<T>(bytes);
}

template <class T>
bool survives(const T& value) {
  return round_trip(value) == value;
}

std::string reason_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const SerializationError& error) {
    CHECK(error.part() == SerializationError::Part::value);
    return error.reason();
  }
  return "no SerializationError";
}

template <class T>
std::string refusal(std::initializer_list<int> values, DecodeLimits limits = {}) {
  std::vector<std::byte> bytes;
  for (const int value : values) {
    bytes.push_back(static_cast<std::byte>(value));
  }
  return reason_of([&] {
    Decoder decoder(bytes, Decoder::Source::untrusted, limits);
    (void)decode<T>(decoder);
    decoder.finish();
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Types.

enum class Scoped : std::uint16_t { one = 1, two };
enum Fixed : std::int8_t { fixed_a, fixed_b };
enum Plain { plain_a, plain_b = 1000 };
enum class Boolean : bool { no, yes };

struct Empty {
  bool operator==(const Empty&) const = default;
};
struct Point {
  double x;
  double y;
  bool operator==(const Point&) const = default;
};
struct Line {
  Point from;
  Point to;
  std::array<std::int32_t, 2> tag;
  Scoped kind;
  std::array<std::uint16_t, 3> more;
  bool operator==(const Line&) const = default;
};
struct alignas(128) Aligned {
  std::array<double, 16> numbers;
  bool operator==(const Aligned&) const = default;
};
struct Padded {
  char c;
  int i;
  bool operator==(const Padded&) const = default;
};
struct Defaults {
  int number = 7;
  std::string text = "text";
  std::optional<bool> flag;
  bool operator==(const Defaults&) const = default;
};
struct Constant {
  const int number;
  const std::string text;
  const std::optional<std::string> maybe;
  bool operator==(const Constant&) const = default;
};
struct ConstantPoint {
  const int x;
  const int y;
  bool operator==(const ConstantPoint&) const = default;
};
struct NoDefault {
  explicit NoDefault(int n) : number(n) {}
  int number;
  bool operator==(const NoDefault&) const = default;
};
struct HoldsNoDefault {
  std::string before;
  NoDefault inside;
  std::string behind;
  bool operator==(const HoldsNoDefault&) const = default;
};
struct MoveOnly {
  std::unique_ptr<int> number;
  std::vector<std::unique_ptr<std::string>> texts;
};
struct Node {
  int value = 0;
  std::vector<Node> children;
  std::unique_ptr<Node> next;
  std::map<std::string, Node> named;
  std::optional<std::vector<Node>> maybe;
};
struct Json {
  std::variant<std::monostate, bool, double, std::string, std::vector<Json>, std::map<std::string, Json>> value;
  bool operator==(const Json&) const = default;
};
struct Even;
struct Odd {
  std::vector<Even> evens;
};
struct Even {
  std::unique_ptr<Odd> odd;
};
struct BitFields {
  unsigned a : 3;
  unsigned b : 5;
  int c : 20;
  std::string d;
  bool operator==(const BitFields&) const = default;
};
struct Most {
  int a1, a2, a3, a4, a5, a6, a7, a8, b1, b2, b3, b4, b5, b6, b7, b8, c1, c2, c3, c4, c5, c6, c7, c8;
  int d1, d2, d3, d4, d5, d6, d7, d8, e1, e2, e3, e4, e5, e6, e7, e8, f1, f2, f3, f4, f5, f6, f7, f8;
  int g1, g2, g3, g4, g5, g6, g7, g8, h1, h2, h3, h4, h5, h6, h7;
  std::string h8;
  bool operator==(const Most&) const = default;
};
struct TooMany {
  std::string a;
  int a1, a2, a3, a4, a5, a6, a7, a8, b1, b2, b3, b4, b5, b6, b7, b8, c1, c2, c3, c4, c5, c6, c7, c8;
  int d1, d2, d3, d4, d5, d6, d7, d8, e1, e2, e3, e4, e5, e6, e7, e8, f1, f2, f3, f4, f5, f6, f7, f8;
  int g1, g2, g3, g4, g5, g6, g7, g8, h1, h2, h3, h4, h5, h6, h7, h8;
};
struct Many {
  int a1, a2, a3, a4, a5;
  std::string b1, b2, b3, b4, b5;
  Empty c1, c2, c3;
  std::optional<std::chrono::seconds> d1, d2;
  std::variant<int, std::string> e1, e2;
  std::function<void()>* none() = delete;
  bool operator==(const Many&) const = default;
};

// Hooks.
struct MemberHook {
  int a = 0;
  std::string b;
  std::vector<int> c;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(a, b);
    archive& c;
  }
  bool operator==(const MemberHook&) const = default;
};
class PrivateHook {
 public:
  explicit PrivateHook(int a) : a_(a) {}
  bool operator==(const PrivateHook&) const = default;

 private:
  friend class bulkhead::access;
  PrivateHook() = default;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(a_);
  }
  int a_ = 0;
};
class PairHook {
 public:
  PairHook() = default;
  explicit PairHook(std::string text) : text_(std::move(text)) {}
  bool operator==(const PairHook&) const = default;

 private:
  friend class bulkhead::access;
  template <class Archive>
  void save(Archive& archive) const {
    static_assert(Archive::is_saving::value);
    archive << text_ << std::size_t{42};
  }
  template <class Archive>
  void load(Archive& archive) {
    static_assert(Archive::is_loading::value);
    std::size_t number = 0;
    archive >> text_ >> number;
    if (number != 42) {
      throw std::runtime_error("not 42");
    }
  }
  std::string text_;
};
struct NamedBase {
  virtual ~NamedBase() = default;
  virtual int kind() const = 0;
  std::string name;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(name);
  }
};
struct Named final : NamedBase {
  int kind() const override { return 5; }
  int number = 0;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(static_cast<NamedBase&>(*this), number);
  }
};
struct InheritsHook : MemberHook {
  int lost = 0;
};
template <class Derived>
struct HookOfDerived {
  template <class Archive>
  void serialize(Archive& archive) {
    archive(static_cast<Derived&>(*this).number);
  }
};
struct Mixed : HookOfDerived<Mixed> {
  int number = 0;
};
struct HookWithoutDefault {
  explicit HookWithoutDefault(int) {}
  template <class Archive>
  void serialize(Archive&) {}
};

// Leaves a variant without a value.
struct Throws {
  Throws() = default;
  Throws(const Throws&) { throw 1; }
  Throws& operator=(const Throws&) = default;
  template <class Archive>
  void serialize(Archive&) {}
  Throws(Throws&&) noexcept(false) { throw 1; }
};

// A codec without decode.
struct BadCodec {
  int number;
};

// A union with a codec.
union Either {
  int a;
  float b;
};

}  // namespace

namespace elsewhere {
struct FreeHook {
  int a = 0;
  std::string b;
  bool operator==(const FreeHook&) const = default;
};
template <class Archive>
void serialize(Archive& archive, FreeHook& value) {
  archive(value.a, value.b);
}
class FreePair {
 public:
  FreePair() = default;
  explicit FreePair(int a) : a_(a) {}
  int a() const { return a_; }
  bool operator==(const FreePair&) const = default;

 private:
  int a_ = 0;
};
template <class Archive>
void save(Archive& archive, const FreePair& value) {
  archive(value.a());
}
template <class Archive>
void load(Archive& archive, FreePair& value) {
  int a = 0;
  archive(a);
  value = FreePair(a);
}
}  // namespace elsewhere

template <>
struct bulkhead::codec<NoDefault> {
  static void encode(Encoder& encoder, const NoDefault& value) { bulkhead::encode(encoder, value.number); }
  static NoDefault decode(Decoder& decoder) {
    const int number = bulkhead::decode<int>(decoder);
    if (number < 0) {
      decoder.fail("The number is " + std::to_string(number) + " and should not be negative.");
    }
    return NoDefault(number);
  }
};
template <>
struct bulkhead::codec<Either> {
  static void encode(Encoder& encoder, const Either& value) { encoder.write_value(value.a); }
  static Either decode(Decoder& decoder) { return Either{.a = decoder.read_value<int>()}; }
};
template <>
struct bulkhead::codec<BadCodec> {
  static void encode(Encoder& encoder, const BadCodec& value) { bulkhead::encode(encoder, value.number); }
};

namespace {

// What cannot be carried must say so, and not fail to compile.
struct Based : Point {};
struct BasedOnEmpty : Empty {
  int a;
};
struct HasArray {
  int before;
  int numbers[4];
};
struct HasArrayOfOne {
  int numbers[1];
};
struct HasArrays {
  char a[16];
  double b[2][3];
  std::string c;
};
struct HasPointer {
  int a;
  const char* text;
};
struct HasReference {
  int& a;
};
struct HasConstReference {
  std::string a;
  const std::string& b;
};
struct HasConstReferenceToNumber {
  const int& a;
};
struct HasRvalueReference {
  int a;
  std::string&& b;
};
struct HasView {
  std::vector<std::string_view> views;
};
struct HasUnion {
  int tag;
  union {
    int a;
    float b;
  };
};
union BareUnion {
  int a;
  float b;
};
struct HasNamedUnion {
  int tag;
  BareUnion value;
};
struct HasEither {
  int tag;
  Either value;
};
struct HasMutex {
  std::mutex mutex;
};
struct HasFunction {
  std::string a;
  std::function<void()> b;
};
struct Abstract {
  virtual ~Abstract() = default;
  virtual void f() = 0;
};
struct Polymorphic {
  virtual ~Polymorphic() = default;
};
class Opaque {
  [[maybe_unused]] int a_ = 0;
};
struct BadCycle {
  std::vector<BadCycle> more;
  void* bad;
};
struct DerivedVector : std::vector<int> {
  std::string lost;
};
int some_number = 0;
[[maybe_unused]] auto capturing = [n = 1] { return n; };
[[maybe_unused]] auto referring = [&n = some_number] { return n; };

static_assert(!Serializable<Based> && !Serializable<BasedOnEmpty> && !Serializable<InheritsHook>);
static_assert(!Serializable<elsewhere_base::LosesFree> && Serializable<elsewhere_base::FreeBase>);
static_assert(!Serializable<std::set<int, bool (*)(int, int)>> && !Serializable<BadCodec>);
static_assert(!Serializable<std::priority_queue<int, std::vector<int>, std::function<bool(int, int)>>>);
static_assert(!Serializable<HasArray> && !Serializable<HasArrayOfOne> && !Serializable<HasArrays>);
static_assert(!Serializable<int[3]> && !Serializable<const char[4]> && !Serializable<std::vector<int>[2]>);
static_assert(!Serializable<HasPointer> && !Serializable<int*> && !Serializable<void*> && !Serializable<const char*>);
static_assert(!Serializable<std::nullptr_t> && !Serializable<int Point::*> && !Serializable<void (*)()>);
static_assert(!Serializable<HasReference> && !Serializable<HasConstReference> && !Serializable<HasRvalueReference>);
static_assert(!Serializable<HasConstReferenceToNumber>);
static_assert(!Serializable<int&> && !Serializable<const std::string&> && !Serializable<int&&>);
static_assert(!Serializable<std::tuple<int&>> && !Serializable<std::pair<const int&, int>>);
static_assert(!Serializable<std::string_view> && !Serializable<std::span<int>> && !Serializable<HasView>);
static_assert(!Serializable<std::span<const int, 3>> && !Serializable<std::reference_wrapper<int>>);
static_assert(!Serializable<std::initializer_list<int>> && !Serializable<std::vector<bool>::reference>);
static_assert(!Serializable<TooMany> && !Serializable<HasUnion> && !Serializable<BareUnion>);
static_assert(!Serializable<HasNamedUnion> && Serializable<HasEither>);
static_assert(!Serializable<HasMutex> && !Serializable<std::thread> && !Serializable<std::atomic<int>>);
static_assert(!Serializable<HasFunction> && !Serializable<std::function<void()>>);
static_assert(!Serializable<decltype(capturing)> && !Serializable<decltype(referring)>);
static_assert(!Serializable<std::unique_ptr<Abstract>> && !Serializable<std::shared_ptr<Polymorphic>>);
static_assert(!Serializable<std::unique_ptr<int[]>> && !Serializable<std::shared_ptr<int[]>>);
static_assert(!Serializable<std::unique_ptr<int, void (*)(int*)>> && !Serializable<std::weak_ptr<int>>);
static_assert(!Serializable<Abstract> && !Serializable<Polymorphic> && !Serializable<Opaque> && !Serializable<void>);
static_assert(!Serializable<volatile int> && !Serializable<BadCycle> && !Serializable<DerivedVector>);
static_assert(!Serializable<HookWithoutDefault> && !Serializable<std::vector<std::optional<int*>>>);
static_assert(!Serializable<std::map<std::string, std::variant<int, const char*>>> &&
              !Serializable<std::exception_ptr>);

static_assert(Serializable<const int> && Serializable<Empty> && Serializable<Node> && Serializable<std::tuple<>>);
static_assert(Serializable<Json> && Serializable<Odd> && Serializable<Even> && Serializable<Many>);
static_assert(Serializable<Named> && Serializable<std::unique_ptr<Named>> && Serializable<Mixed>);
static_assert(Serializable<Either> && Serializable<std::vector<NoDefault>> && Serializable<Constant>);

template <class T>
concept OnePiece = codec_detail::is_bitwise<T>();
static_assert(OnePiece<int> && OnePiece<Scoped> && OnePiece<Fixed> && OnePiece<Point> && OnePiece<Line>);
static_assert(OnePiece<std::byte> && OnePiece<std::chrono::nanoseconds> && OnePiece<std::complex<float>>);
static_assert(OnePiece<ConstantPoint> && OnePiece<std::chrono::steady_clock::time_point>);
static_assert(!OnePiece<bool> && !OnePiece<long double> && !OnePiece<Padded> && !OnePiece<Plain> && !OnePiece<Boolean>);
static_assert(!OnePiece<Empty> && !OnePiece<std::string> && !OnePiece<Either> && !OnePiece<NoDefault>);

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("numbers and enumerations come back as they were", "[serialization]") {
  CHECK(survives(true));
  CHECK(survives(false));
  CHECK(survives('x'));
  CHECK(survives(char32_t{0x1F600}));
  CHECK(survives(std::numeric_limits<std::int64_t>::min()));
  CHECK(survives(std::numeric_limits<std::uint64_t>::max()));
  CHECK(survives(-0.5F));
  CHECK(std::isnan(round_trip(std::nan(""))));
  CHECK(survives(3.14159265358979323846264L));
  CHECK(survives(std::byte{200}));
  CHECK(survives(Scoped::two));
  CHECK(survives(static_cast<Scoped>(999)));
  CHECK(survives(fixed_b));
  CHECK(survives(plain_b));
  CHECK(survives(Boolean::yes));
  CHECK(survives(std::complex<double>(1, -2)));
  CHECK(survives(std::complex<long double>(1, -2)));
}

TEST_CASE("sizes are encoded in as few bytes as they need", "[serialization]") {
  for (const std::uint64_t n : {std::uint64_t{0}, std::uint64_t{127}, std::uint64_t{128}, std::uint64_t{1} << 35,
                                std::numeric_limits<std::uint64_t>::max()}) {
    std::array<std::byte, 10> buffer;
    Encoder encoder(buffer);
    encoder.write_size(n);
    Decoder decoder(std::span{buffer}.first(encoder.size()));
    CHECK(decoder.read_size() == n);
    CHECK(decoder.remaining() == 0);
    CHECK(encoder.size() == std::max<std::size_t>(1, (static_cast<std::size_t>(std::bit_width(n)) + 6) / 7));
  }
}

TEST_CASE("strings and paths come back as they were", "[serialization]") {
  CHECK(survives(std::string()));
  CHECK(survives(std::string("with a zero \0 in it", 19)));
  CHECK(survives(std::string(100000, 'x')));
  CHECK(survives(std::wstring(L"wide")));
  CHECK(survives(std::u8string(u8"eight")));
  CHECK(survives(std::u16string(u"sixteen")));
  CHECK(survives(std::u32string(U"thirty-two")));
  CHECK(survives(std::filesystem::path("/tmp/a b/c.txt")));
}

TEST_CASE("times come back as they were", "[serialization]") {
  using namespace std::chrono_literals;
  CHECK(survives(std::chrono::nanoseconds(-5)));
  CHECK(survives(std::chrono::duration<double, std::milli>(1.5)));
  CHECK(survives(std::chrono::duration<long double>(1.5L)));
  CHECK(survives(std::chrono::system_clock::now()));
  CHECK(survives(std::chrono::steady_clock::now()));
  CHECK(survives(std::vector<std::chrono::seconds>{1s, 2s}));
  CHECK(survives(std::chrono::year(-44) / 3 / 15));
  CHECK(survives(std::chrono::Sunday));
  CHECK(survives(std::vector{std::chrono::year(2024) / 2 / 29, std::chrono::year(2026) / 11 / 21}));
}

TEST_CASE("standard wrappers come back as they were", "[serialization]") {
  CHECK(survives(std::optional<int>()));
  CHECK(survives(std::optional<std::string>("x")));
  CHECK(survives(std::optional<std::optional<bool>>(std::optional<bool>())));
  CHECK(survives(std::pair<const int, std::string>(1, "x")));
  CHECK(survives(std::tuple<int, std::string, Point, bool>(1, "x", {2, 3}, true)));
  CHECK(survives(std::tuple<>()));
  using V = std::variant<std::monostate, int, std::string, int>;
  CHECK(survives(V()));
  CHECK(survives(V(std::in_place_index<1>, 5)));
  CHECK(survives(V("text")));
  CHECK(survives(V(std::in_place_index<3>, 5)));
  CHECK(survives(std::monostate()));
  CHECK(survives(std::bitset<0>()));
  CHECK(survives(std::bitset<13>(0x1555)));
  CHECK(survives(std::bitset<64>(0x123456789abcdef0)));

  CHECK(round_trip(std::unique_ptr<int>()) == nullptr);
  CHECK(*round_trip(std::make_unique<std::string>("x")) == "x");
  CHECK(round_trip(std::shared_ptr<Point>()) == nullptr);
  CHECK(*round_trip(std::make_shared<const std::string>("x")) == "x");
  const auto shared = std::make_shared<int>(5);
  const auto both = round_trip(std::pair(shared, shared));
  CHECK(*both.first == 5);
  CHECK(both.first != both.second);
}

TEST_CASE("standard containers come back as they were", "[serialization]") {
  CHECK(survives(std::vector<int>()));
  CHECK(survives(std::vector<int>{1, 2, 3}));
  CHECK(survives(std::vector<Point>{{1, 2}, {3, 4}}));
  CHECK(survives(std::vector<Line>(3)));
  CHECK(survives(std::pair<char, std::vector<Aligned>>('x', 3)));
  CHECK(survives(std::vector<Padded>{{'a', 1}, {'b', 2}}));
  CHECK(survives(std::vector<ConstantPoint>{{1, 2}, {3, 4}}));
  CHECK(survives(std::vector<std::string>(5000, "long enough to be on the heap, that is")));
  CHECK(survives(std::vector<Empty>(1000)));
  CHECK(survives(std::vector<std::vector<std::vector<char>>>{{{'a'}, {}}, {}}));
  for (std::size_t n = 0; n != 20; ++n) {
    std::vector<bool> bits(n, true);
    if (n > 3) {
      bits[2] = false;
    }
    CHECK(survives(bits));
  }
  CHECK(survives(std::array<int, 3>{1, 2, 3}));
  CHECK(survives(std::array<std::string, 2>{"a", "b"}));
  CHECK(survives(std::array<int, 0>()));
  CHECK(survives(std::array<Constant, 2>{Constant{1, "a", {}}, Constant{2, "b", {}}}));
  CHECK(survives(std::array<std::array<double, 2>, 2>{{{1, 2}, {3, 4}}}));
  CHECK(survives(std::deque<int>{1, 2, 3}));
  CHECK(survives(std::deque<std::array<double, 2>>{{1, 2}, {3, 4}}));
  CHECK(survives(std::list<std::string>{"a", "b"}));
  CHECK(survives(std::forward_list<int>{1, 2, 3}));
  CHECK(survives(std::set<std::string>{"b", "a"}));
  CHECK(survives(std::set<int, std::greater<>>{1, 2, 3}));
  CHECK(survives(std::multiset<int>{1, 1, 2}));
  CHECK(survives(std::map<std::string, int>{{"a", 1}, {"b", 2}}));
  CHECK(survives(std::multimap<int, bool>{{1, true}, {1, false}}));
  CHECK(survives(std::unordered_set<std::string>{"b", "a"}));
  CHECK(survives(std::unordered_multiset<int>{1, 1, 2}));
  CHECK(survives(std::unordered_map<int, std::vector<int>>{{1, {1}}, {2, {}}}));
  CHECK(survives(std::unordered_multimap<int, int>{{1, 2}, {1, 2}}));
  CHECK(survives(std::queue<int>({1, 2, 3})));
  CHECK(survives(std::stack<std::string, std::vector<std::string>>({"a", "b"})));
  std::priority_queue<int, std::vector<int>, std::greater<>> first({}, {3, 1, 2});
  auto second = round_trip(first);
  for (; !first.empty(); first.pop(), second.pop()) {
    CHECK(first.top() == second.top());
  }
  CHECK(second.empty());
}

TEST_CASE("aggregates come back as they were", "[serialization]") {
  CHECK(survives(Empty{}));
  CHECK(survives(Point{1, 2}));
  CHECK(survives(Line{{1, 2}, {3, 4}, {5, 6}, Scoped::two, {7, 8, 9}}));
  CHECK(survives(Padded{'a', 1}));
  CHECK(survives(Defaults{}));
  CHECK(survives(Defaults{1, "x", true}));
  CHECK(survives(Constant{1, "x", "y"}));
  CHECK(survives(ConstantPoint{1, 2}));
  CHECK(survives(HoldsNoDefault{"a", NoDefault(5), "b"}));
  CHECK(survives(Many{1, 2, 3, 4, 5, "1", "2", "3", "4", "5", {}, {}, {}, {}, std::chrono::seconds(1), 1, "x"}));

  CHECK(survives(BitFields{7, 31, -5, "x"}));
  Most most{};
  most.a2 = 1;
  most.h7 = 2;
  most.h8 = "x";
  CHECK(survives(most));

  MoveOnly move_only;
  move_only.number = std::make_unique<int>(5);
  move_only.texts.push_back(std::make_unique<std::string>("x"));
  move_only.texts.push_back(nullptr);
  const MoveOnly moved = round_trip(move_only);
  CHECK(*moved.number == 5);
  CHECK(*moved.texts[0] == "x");
  CHECK(moved.texts[1] == nullptr);
}

TEST_CASE("types that contain themselves come back as they were", "[serialization]") {
  Node node;
  node.value = 1;
  node.children.resize(2);
  node.children[1].next = std::make_unique<Node>();
  node.children[1].next->value = 9;
  node.named["a"].value = 3;
  node.maybe.emplace(3);
  const Node copy = round_trip(node);
  CHECK(copy.value == 1);
  CHECK(copy.children.at(1).next->value == 9);
  CHECK(copy.named.at("a").value == 3);
  CHECK(copy.maybe->size() == 3);

  Json json;
  json.value = std::map<std::string, Json>{{"a", Json{true}}, {"b", Json{std::vector<Json>{{1.5}, {"x"}, {}}}}};
  CHECK(survives(json));

  Odd odd;
  odd.evens.resize(1);
  odd.evens[0].odd = std::make_unique<Odd>();
  CHECK(round_trip(odd).evens[0].odd->evens.empty());
}

TEST_CASE("types with hooks and codecs come back as they were", "[serialization]") {
  CHECK(survives(MemberHook{1, "x", {1, 2}}));
  CHECK(survives(PrivateHook(5)));
  CHECK(survives(PairHook("x")));
  CHECK(survives(elsewhere::FreeHook{1, "x"}));
  CHECK(survives(elsewhere::FreePair(5)));
  CHECK(survives(std::vector<PrivateHook>{PrivateHook(1), PrivateHook(2)}));
  CHECK(survives(std::map<std::string, elsewhere::FreePair>{{"a", elsewhere::FreePair(5)}}));
  CHECK(survives(std::optional<NoDefault>(5)));
  CHECK(round_trip(Either{.a = 5}).a == 5);

  Named named;
  named.name = "x";
  named.number = 3;
  CHECK(round_trip(named).name == "x");
  const auto pointer = round_trip(std::make_unique<Named>(named));
  CHECK(pointer->number == 3);
  CHECK(pointer->kind() == 5);
  Mixed mixed;
  mixed.number = 8;
  CHECK(round_trip(mixed).number == 8);

  const std::string reason = reason_of([] { (void)from_bytes<NoDefault>(to_bytes(-1)); });
  CHECK(reason == "The number is -1 and should not be negative.");
  CHECK_THROWS_AS(from_bytes<PairHook>(to_bytes(std::pair<std::string, std::size_t>("x", 1))), std::runtime_error);
}

TEST_CASE("an encoder whose buffer is too small counts on and writes nothing beyond it", "[serialization]") {
  const std::vector<std::string> value{"some", "words", "and", "more"};
  const std::size_t exact = to_bytes(value).size();
  for (std::size_t size = 0; size <= exact + 1; ++size) {
    std::vector<std::byte> buffer(size + 1, std::byte{0xee});
    Encoder encoder(std::span{buffer}.first(size));
    encode(encoder, value);
    CHECK(encoder.size() == exact);
    CHECK(encoder.fits() == (size >= exact));
    CHECK(buffer[size] == std::byte{0xee});
  }
}

TEST_CASE("to_bytes allocates once", "[serialization]") {
  const std::vector<double> large(10000);
  const std::size_t before = allocated;
  const std::vector<std::byte> bytes = to_bytes(large);
  if (kCountsAllocations) CHECK(allocated - before == bytes.size());
  CHECK(bytes.capacity() == bytes.size());
}

TEST_CASE("views show what was encoded where it lies", "[serialization]") {
  alignas(64) std::array<std::byte, 256> buffer;
  Encoder encoder(buffer);
  encode(encoder, std::string("a text"));
  encode(encoder, std::vector<double>{1, 2, 3});
  encode(encoder, 'x');
  encode(encoder, std::array<std::uint32_t, 2>{4, 5});
  encode(encoder, std::string("as a span"));
  encode(encoder, std::u32string(U"wide"));
  encode(encoder, std::array<Point, 1>{{{6, 7}}});
  encode(encoder, std::vector<std::byte>());
  REQUIRE(encoder.fits());

  const std::span<const std::byte> bytes = std::span(buffer).first(encoder.size());
  const auto is_inside = [&](const void* pointer) {
    return pointer >= buffer.data() && pointer < bytes.data() + bytes.size();
  };
  Decoder decoder(bytes);
  const auto text = decode_view<std::string_view>(decoder);
  CHECK(text == "a text");
  CHECK(static_cast<const void*>(text.data()) == buffer.data() + 1);
  const auto numbers = decode_view<std::span<const double>>(decoder);
  CHECK(std::vector(numbers.begin(), numbers.end()) == std::vector<double>{1, 2, 3});
  CHECK(static_cast<const void*>(numbers.data()) == buffer.data() + 8);
  CHECK(decode<char>(decoder) == 'x');
  const auto fixed = decode_view<std::span<const std::uint32_t>, std::array<std::uint32_t, 2>>(decoder);
  CHECK(fixed.size() == 2);
  CHECK(fixed[1] == 5);
  CHECK(is_inside(fixed.data()));
  CHECK(reinterpret_cast<std::uintptr_t>(fixed.data()) % alignof(std::uint32_t) == 0);
  const auto characters = decode_view<std::span<const char>, std::string>(decoder);
  CHECK(std::string(characters.begin(), characters.end()) == "as a span");
  CHECK(is_inside(characters.data()));
  CHECK(decode_view<std::u32string_view>(decoder) == U"wide");
  const auto points = decode_view<std::span<const Point, 1>, std::array<Point, 1>>(decoder);
  CHECK(points[0] == Point{6, 7});
  CHECK(is_inside(points.data()));
  CHECK(decode_view<std::span<const std::byte>>(decoder).empty());
  CHECK_NOTHROW(decoder.finish());

  static_assert(!ViewsInPlace<std::string_view, std::vector<char>> && !ViewsInPlace<std::span<char>, std::string>);
  static_assert(!ViewsInPlace<std::span<const bool>, std::vector<bool>> && !ViewsInPlace<std::string, std::string>);
  static_assert(!ViewsInPlace<std::span<const std::string>, std::vector<std::string>>);
  static_assert(!ViewsInPlace<std::span<const int, 2>, std::array<int, 3>>);
}

TEST_CASE("views of what is not trusted, or lies misaligned, are refused", "[serialization]") {
  alignas(64) std::array<std::byte, 64> buffer{};
  Encoder encoder(std::span{buffer}.subspan(1));
  encode(encoder, std::vector<double>{1, 2});
  const std::span<const std::byte> bytes = std::span(buffer).subspan(1, encoder.size());
  Decoder untrusted(bytes, Decoder::Source::untrusted);
  CHECK_THROWS_AS(decode_view<std::span<const double>>(untrusted), std::logic_error);
  Decoder misaligned(bytes);
  CHECK_THROWS_AS(decode_view<std::span<const double>>(misaligned), std::logic_error);
  CHECK(from_bytes<std::vector<double>>(bytes) == std::vector<double>{1, 2});
  Decoder short_one(bytes.first(12));
  CHECK_THROWS_AS(decode_view<std::span<const double>>(short_one), SerializationError);
}

TEST_CASE("errors say what is wrong, with the numbers and the type", "[serialization]") {
  CHECK(refusal<int>({1, 2}) == "The bytes end too early: 4 are needed at offset 0 and 2 are left.");
  CHECK(refusal<char>({1, 2, 3}) == "2 bytes are left over behind the value.");
  CHECK_THAT(refusal<bool>({2}), ContainsSubstring("flag of a bool is 0 or 1, and 2 was read"));
  CHECK_THAT(refusal<Boolean>({2}), ContainsSubstring("0 or 1"));
  CHECK_THAT(refusal<std::optional<int>>({9}), ContainsSubstring("optional is 0 or 1, and 9"));
  CHECK_THAT(refusal<std::unique_ptr<int>>({255}), ContainsSubstring("pointer is 0 or 1, and 255"));
  CHECK_THAT((refusal<std::variant<int, char>>({2})), ContainsSubstring("Alternative 2 of a variant of 2"));
  CHECK_THAT((refusal<std::set<char>>({2, 'a', 'a'})), ContainsSubstring("1 keys more than once"));
  CHECK_THAT((refusal<std::map<char, char>>({2, 'a', 1, 'a', 2})), ContainsSubstring("1 keys more than once"));
  CHECK_THAT(refusal<std::vector<int>>({3, 0, 0, 0}), ContainsSubstring("3 elements of at least 4 bytes"));
  CHECK_THAT(refusal<std::string>({0x80, 0}), ContainsSubstring("longer than it must be"));
  CHECK_THAT(refusal<std::string>({255, 255, 255, 255, 255, 255, 255, 255, 255, 2}), ContainsSubstring("64 bits"));
  CHECK_THAT(refusal<std::string>({255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}), ContainsSubstring("64 bits"));
  CHECK_THAT(refusal<std::vector<bool>>({255, 255, 255, 255, 255, 255, 255, 255, 255, 1}),
             ContainsSubstring("bools do not fit"));

  try {
    (void)from_bytes<std::vector<Defaults>>(to_bytes(std::vector<int>{1}));
    FAIL("decoded");
  } catch (const SerializationError& error) {
    CHECK_THAT(error.type_name(), ContainsSubstring("Defaults"));
  }
  try {
    (void)from_bytes<std::tuple<Defaults, bool>>(to_bytes(std::tuple<Defaults, char>(Defaults(), 2)));
    FAIL("decoded");
  } catch (const SerializationError& error) {
    CHECK_THAT(error.type_name(), ContainsSubstring("tuple"));
  }
  CHECK(type_name<std::pair<int, char>>() == "std::pair<int, char>");
  CHECK(type_name<std::string>() == "std::string");
  CHECK(type_name<std::map<std::string, std::vector<int>>>() ==
        "std::map<std::string, std::vector<int>, std::less<std::string >>");
  CHECK(demangle("no name") == "no name");
}

TEST_CASE("values nested deeper than 64 are refused in both directions", "[serialization]") {
  struct List {
    int value = 0;
    std::unique_ptr<List> next;
  };
  const auto make = [](std::size_t length) {
    List list;
    for (std::size_t i = 1; i < length; ++i) {
      auto rest = std::make_unique<List>(std::move(list));
      list = {static_cast<int>(i), std::move(rest)};
    }
    return list;
  };
  CHECK(round_trip(make(64)).value == 63);
  CHECK_THAT(reason_of([&] { (void)to_bytes(make(65)); }), ContainsSubstring("nested deeper than 64"));

  List long_list = make(1);
  for (int i = 0; i != 1000000; ++i) {
    auto rest = std::make_unique<List>(std::move(long_list));
    long_list.next = std::move(rest);
  }
  CHECK_THAT(reason_of([&] { (void)to_bytes(long_list); }), ContainsSubstring("nested deeper than 64"));
  while (long_list.next) {
    auto rest = std::move(long_list.next);
    long_list.next = std::move(rest->next);
  }

  std::vector<std::byte> deep;
  for (int i = 0; i != 100; ++i) {
    for (const int byte : {0, 0, 0, 0, 1}) {
      deep.push_back(static_cast<std::byte>(byte));
    }
  }
  CHECK_THAT(reason_of([&] { (void)from_bytes<List>(deep); }), ContainsSubstring("nested deeper than 64"));
  Decoder shallow(deep, Decoder::Source::untrusted, {.max_depth = 3});
  CHECK_THAT(reason_of([&] { (void)decode<List>(shallow); }), ContainsSubstring("nested deeper than 3"));
}

TEST_CASE("a few hostile bytes cannot take much memory", "[serialization]") {
  const auto huge = {255, 255, 255, 255, 255, 255, 255, 255, 255, 1};
  const auto large = {255, 255, 255, 255, 7};
  for (const auto& bytes : {huge, large}) {
    const std::size_t before = allocated;
    CHECK_THAT(refusal<std::string>(bytes), ContainsSubstring("elements of at least"));
    CHECK_THAT(refusal<std::vector<double>>(bytes), ContainsSubstring("elements of at least"));
    CHECK_THAT(refusal<std::vector<std::string>>(bytes), ContainsSubstring("elements of at least"));
    CHECK_THAT((refusal<std::map<int, std::string>>(bytes)), ContainsSubstring("elements of at least 5 bytes"));
    CHECK_THAT(refusal<std::vector<Empty>>(bytes), ContainsSubstring("more memory than a message of"));
    CHECK_THAT(refusal<std::list<std::tuple<>>>(bytes), ContainsSubstring("more memory than a message of"));
    CHECK_THAT(refusal<std::vector<NoDefault>>(bytes), ContainsSubstring("more memory than a message of"));
    CHECK_THAT(refusal<std::deque<std::deque<char>>>(bytes), ContainsSubstring("elements of at least"));
    if (kCountsAllocations) CHECK(allocated - before < 100000);
  }
  struct Wide {
    std::optional<std::array<char, 1000>> maybe;
  };
  CHECK(refusal<std::vector<Wide>>({2, 0, 0}, {.memory_per_byte = 1, .memory_base = 10000}) == "no SerializationError");
  CHECK_THAT(refusal<std::vector<Wide>>({2, 0, 0}, {.memory_per_byte = 1, .memory_base = 1000}),
             ContainsSubstring("it would take more memory than a message of 3 bytes may (1000 bytes and 1 for each"));
}

TEST_CASE("a variant without a value is refused", "[serialization]") {
  std::variant<int, Throws> variant = 1;
  CHECK_THROWS(variant.emplace<1>(Throws()));
  REQUIRE(variant.valueless_by_exception());
  CHECK_THAT(reason_of([&] { (void)to_bytes(variant); }), ContainsSubstring("has no value"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Hostile bytes.

namespace {

struct Everything {
  Line line;
  Defaults defaults;
  Json json;
  std::vector<Node> nodes;
  std::map<std::string, std::vector<Padded>> map;
  std::tuple<bool, std::optional<std::string>, std::variant<int, std::string, Empty>> tuple;
  std::vector<bool> bits;
  std::list<std::deque<short>> lists;
  std::unordered_map<std::string, std::set<int>> sets;
  std::vector<std::shared_ptr<MemberHook>> hooks;
  std::vector<Empty> empties;
  std::filesystem::path path;
  std::chrono::seconds seconds{};
  std::forward_list<long double> forward;
  std::array<std::string, 2> array;
};

Everything everything() {
  Everything value;
  value.line.tag = {1, 2};
  value.json.value = std::vector<Json>{{true}, {1.5}, {"text"}, {std::map<std::string, Json>{{"k", {}}}}};
  value.nodes.resize(2);
  value.nodes[0].next = std::make_unique<Node>();
  value.nodes[1].named["x"].value = 1;
  value.map["a"] = {{'a', 1}, {'b', 2}};
  std::get<1>(value.tuple) = "some";
  std::get<2>(value.tuple) = "text";
  value.bits = {true, false, true};
  value.lists = {{1, 2}, {}};
  value.sets["s"] = {1, 2, 3};
  value.hooks = {nullptr, std::make_shared<MemberHook>(MemberHook{1, "x", {1, 2, 3}})};
  value.empties.resize(3);
  value.path = "/tmp/x";
  value.forward = {1, 2};
  value.array = {"a", "b"};
  return value;
}

// Decodes bytes that may be anything, and tells whether that worked.
template <class T>
bool try_decode(std::span<const std::byte> bytes, DecodeLimits limits = {}) {
  try {
    Decoder decoder(bytes, Decoder::Source::untrusted, limits);
    [[maybe_unused]] const T value = decode<T>(decoder);
    decoder.finish();
    return true;
  } catch (const SerializationError&) {
    return false;
  }
}

struct Sample {
  std::vector<std::byte> bytes;
  bool (*decode)(std::span<const std::byte>, DecodeLimits);
};

template <class T>
Sample sample(const T& value) {
  return {to_bytes(value),
          [](std::span<const std::byte> bytes, DecodeLimits limits) { return try_decode<T>(bytes, limits); }};
}

std::vector<Sample> corpus() {
  return {sample(everything()),
          sample(std::vector<std::string>{"a", "bc", ""}),
          sample(std::vector<double>{1, 2, 3}),
          sample(std::map<int, std::map<int, std::string>>{{1, {{2, "x"}}}}),
          sample(everything().json),
          sample(std::tuple(true, std::optional<int>(1), std::variant<int, std::string>("x"), std::bitset<9>(3))),
          sample(std::vector<std::unique_ptr<Point>>(3)),
          sample(std::deque<std::deque<char>>(4)),
          sample(std::unordered_multimap<char, std::vector<Empty>>{{'a', std::vector<Empty>(2)}}),
          sample(std::priority_queue<std::string>({}, {"a", "b"})),
          sample(std::vector<MemberHook>(2)),
          sample(std::u16string(u"text"))};
}

}  // namespace

TEST_CASE("every truncated message is refused", "[serialization]") {
  for (const Sample& each : corpus()) {
    REQUIRE(each.decode(each.bytes, {}));
    for (std::size_t size = 0; size != each.bytes.size(); ++size) {
      const std::vector<std::byte> truncated(each.bytes.begin(),
                                             each.bytes.begin() + static_cast<std::ptrdiff_t>(size));
      CHECK_FALSE(each.decode(truncated, {}));
    }
  }
}

TEST_CASE("arguments, which come from the program itself, may take more memory than a result may", "[serialization]") {
  using Sparse = std::vector<std::optional<std::array<double, 64>>>;
  const Sparse sparse(200000);
  const std::vector<std::byte> bytes = to_bytes(sparse);
  Decoder trusted(bytes, Decoder::Source::trusted);
  CHECK(decode<Sparse>(trusted).size() == sparse.size());
  Decoder untrusted(bytes, Decoder::Source::untrusted);
  CHECK_THAT(reason_of([&] { (void)decode<Sparse>(untrusted); }), ContainsSubstring("more memory than a message of"));
}

TEST_CASE("mutated messages decode or are refused, within their memory", "[serialization]") {
  const auto seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const std::vector<Sample> samples = corpus();
  const DecodeLimits limits{.memory_base = 4096};
  std::size_t worst = 0;
  for (int i = 0; i != 200000; ++i) {
    const Sample& each = samples[random() % samples.size()];
    std::vector<std::byte> bytes = each.bytes;
    for (auto n = random() % 4 + 1; n != 0; --n) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<std::byte>(random());
          break;
        case 1:
          bytes[at] ^= static_cast<std::byte>(1U << random() % 8);
          break;
        case 2:
          bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::byte>(random()));
          break;
        default:
          bytes[at] = std::byte{0xff};
      }
    }
    const std::size_t before = live;
    peak = before;
    (void)each.decode(bytes, limits);
    if (live != before) {
      FAIL("leaked " << live - before << " bytes");
    }
    const std::size_t taken = peak - before;
    // Twice, since a vector that grows exists twice for a moment; and what the exception takes.
    const std::size_t permitted = 2 * (limits.memory_base + limits.memory_per_byte * bytes.size()) + 4096;
    worst = std::max(worst, taken);
    if (taken > permitted) {
      FAIL("took " << taken << " bytes, permitted " << permitted);
    }
  }
  if (kCountsAllocations) CHECK(worst > 0);
}

// A race on purpose, which ThreadSanitizer would rightly report.
#ifndef BULKHEAD_TEST_UNDER_TSAN
TEST_CASE("bytes that change while they are decoded give valid values or are refused", "[serialization]") {
  using T = std::tuple<std::variant<int, std::string>, std::vector<bool>, std::optional<std::vector<std::string>>,
                       std::vector<std::variant<bool, std::vector<int>>>, std::map<char, bool>>;
  const std::vector<std::byte> bytes = to_bytes(T("some text", {true, false}, std::vector<std::string>{"a", "bcd"},
                                                  {true, std::vector<int>{1, 2}}, {{'a', true}, {'b', false}}));
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  std::memcpy(memory, bytes.data(), bytes.size());
  std::atomic<bool> stop = false;
  std::thread enemy([&] {
    auto* shared = static_cast<volatile unsigned char*>(memory);
    std::minstd_rand random(1);
    while (!stop.load(std::memory_order_relaxed)) {
      const std::size_t at = random() % bytes.size();
      const auto original = static_cast<unsigned char>(bytes[at]);
      shared[at] = static_cast<unsigned char>(random() % 2 == 0 ? original + 1 : random());
      shared[at] = original;
    }
  });
  int decoded = 0;
  int refused = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i != 1000; ++i) {
      try {
        const std::span shared(static_cast<const std::byte*>(memory), bytes.size());
        const T value = from_bytes<T>(shared);
        // Walks through all of it: a size or index that was read twice would show here.
        decoded += from_bytes<T>(to_bytes(value)) == value ? 1 : 0;
      } catch (const SerializationError&) {
        ++refused;
      }
    }
  }
  stop = true;
  enemy.join();
  ::munmap(memory, 4096);
  INFO(decoded << " decoded, " << refused << " refused");
  CHECK((decoded + refused) % 1000 == 0);
  CHECK(decoded > 0);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("fingerprints differ between shapes and not between equal shapes", "[serialization]") {
  struct SamePoint {
    double latitude;
    double longitude;
  };
  static_assert(fingerprint<Point>() == fingerprint<SamePoint>());
  static_assert(fingerprint<std::unique_ptr<int>>() == fingerprint<std::shared_ptr<int>>());
  static_assert(fingerprint<const int>() == fingerprint<int>());
  const std::vector<std::uint64_t> different{
      fingerprint<void>(),
      fingerprint<bool>(),
      fingerprint<char>(),
      fingerprint<int>(),
      fingerprint<unsigned>(),
      fingerprint<long>(),
      fingerprint<float>(),
      fingerprint<double>(),
      fingerprint<long double>(),
      fingerprint<Scoped>(),
      fingerprint<Point>(),
      fingerprint<Line>(),
      fingerprint<Padded>(),
      fingerprint<Empty>(),
      fingerprint<Node>(),
      fingerprint<Json>(),
      fingerprint<std::string>(),
      fingerprint<std::u16string>(),
      fingerprint<std::filesystem::path>(),
      fingerprint<std::vector<int>>(),
      fingerprint<std::vector<unsigned>>(),
      fingerprint<std::vector<bool>>(),
      fingerprint<std::deque<int>>(),
      fingerprint<std::array<int, 2>>(),
      fingerprint<std::array<int, 3>>(),
      fingerprint<std::set<int>>(),
      fingerprint<std::map<int, int>>(),
      fingerprint<std::map<int, bool>>(),
      fingerprint<std::optional<int>>(),
      fingerprint<std::unique_ptr<int>>(),
      fingerprint<std::variant<int, bool>>(),
      fingerprint<std::variant<bool, int>>(),
      fingerprint<std::tuple<int, bool>>(),
      fingerprint<std::tuple<int, std::tuple<bool>>>(),
      fingerprint<std::tuple<>>(),
      fingerprint<std::chrono::seconds>(),
      fingerprint<std::chrono::milliseconds>(),
      fingerprint<std::bitset<8>>(),
      fingerprint<std::bitset<9>>(),
      fingerprint<std::complex<float>>(),
      fingerprint<MemberHook>(),
      fingerprint<elsewhere::FreeHook>(),
      fingerprint<NoDefault>(),
      fingerprint<Either>(),
  };
  const std::set<std::uint64_t> unique(different.begin(), different.end());
  CHECK(unique.size() == different.size());
}

TEST_CASE("fingerprints are the same for all compilers", "[serialization]") {
  // From g++ 12; whoever changes the wire changes these.
  CHECK(fingerprint<Everything>() == 0xbd7b885ce156766);
  CHECK(fingerprint<NoDefault>() == 0xda98927f6b85bd28);
  CHECK(fingerprint<std::vector<elsewhere::FreeHook>>() == 0xc69bdc11c9fe7125);
}
