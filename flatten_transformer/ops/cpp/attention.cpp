// Focused linear attention on the CPU, forward and backward, each tensor read once or twice and never copied.
//
// B batch, H heads, N queries, M keys, D key channels, E value channels per head; the derivation is in README.md.
// Tokens are worked on in tiles of TILE, small enough that a tile's features stay in the first caches. Sums over
// tokens are split by the number of tokens alone, so a result does not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int VECTOR_BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16, ROWS = 6;
#endif
constexpr int64_t TILE = 32, MOST_SPLITS = 64, TOKENS_A_SPLIT = 512, AHEAD = 8;  // tokens

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES)));
template <class T> struct VectorOf;
template <> struct VectorOf<float> {
  using type = FloatVector;
};
template <> struct VectorOf<double> {
  using type = DoubleVector;
};
template <class T> using Vec = typename VectorOf<T>::type;
template <class T> constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

// The layout of Problem in build.py, made from Arguments; strides count elements.
struct Problem {
  const void *query, *key, *value, *key_weights, *key_encoding, *temperature, *conv_weight, *conv_bias, *grad;
  void *out, *context, *key_sum;
  void *grad_query, *grad_key, *grad_value, *grad_temperature, *grad_conv_weight, *grad_conv_bias;
  int64_t query_strides[3], key_strides[3], value_strides[3];  // of batch, head, token
  int64_t encoding_strides[2];                                 // of head, token
  int64_t batch, heads, queries, keys, channels, value_channels;
  int64_t height, width, kernel_height, kernel_width;
  int64_t threads;
  double shift;  // a power of two that makes features smaller, see precision.py
  double focusing_factor;
  int64_t joint;
  double eps;
};

namespace {

// No exceptions: they may not leave a parallel region, and to throw one takes memory itself.
struct Memory {
  std::atomic<bool> exhausted{false};
};

// Zeros; look at memory.exhausted before the first use.
template <class T> class Buffer {
  T *const first;

 public:
  Buffer(Memory &memory, int64_t count) : first(static_cast<T *>(std::calloc(std::max<int64_t>(count, 1), sizeof(T)))) {
    if (!first) memory.exhausted = true;
  }
  ~Buffer() { std::free(first); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  T *data() const { return first; }
  T &operator[](int64_t i) const { return first[i]; }
};

template <class T> Vec<T> load(const T *from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class T> Vec<T> load(const T *from, int64_t count) {  // zeros beyond count
  if (count >= LANES<T>) return load(from);
  Vec<T> x{};
  for (int64_t i = 0; i < count; ++i) x[i] = from[i];
  return x;
}

template <class T> void store(T *to, Vec<T> x) { std::memcpy(to, &x, sizeof x); }

template <class T> void store(T *to, Vec<T> x, int64_t count) {
  if (count >= LANES<T>) return store(to, x);
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}

#if defined(__AVX512F__)
float sum_lanes(FloatVector x) { return _mm512_reduce_add_ps(x); }
double sum_lanes(DoubleVector x) { return _mm512_reduce_add_pd(x); }
float largest_lane(FloatVector x) { return _mm512_reduce_max_ps(x); }
double largest_lane(DoubleVector x) { return _mm512_reduce_max_pd(x); }
#else
template <class V> auto sum_lanes(V x) {
  auto total = x[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(total)); ++i) total += x[i];
  return total;
}
template <class V> auto largest_lane(V x) {
  auto most = x[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(most)); ++i) most = x[i] > most ? x[i] : most;
  return most;
}
#endif
template <class T> T sum(Vec<T> x) { return sum_lanes(x); }

template <class T> T largest(Vec<T> x) { return largest_lane(x); }

template <class T> int64_t padded(int64_t count) { return (count + LANES<T> - 1) / LANES<T> * LANES<T>; }

// c[r][j] (+)= Σ_k a[r·row + k·step] b[k][j] for R rows and C vectors of columns, summed in registers.
template <class T, int R, int C, bool ADD>
void product_block(int64_t inner, const T *a, int64_t row, int64_t step, const T *b, int64_t b_row, T *c, int64_t c_row) {
  Vec<T> sums[R][C] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec<T> right[C];
    for (int j = 0; j < C; ++j) right[j] = load(b + k * b_row + j * LANES<T>);
    for (int r = 0; r < R; ++r) {
      const T left = a[r * row + k * step];
      for (int j = 0; j < C; ++j) sums[r][j] += left * right[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < C; ++j) {
      T *to = c + r * c_row + j * LANES<T>;
      store(to, ADD ? load(to) + sums[r][j] : sums[r][j]);
    }
}

template <class T, int R, bool ADD>
void product_rows(int64_t columns, int64_t inner, const T *a, int64_t row, int64_t step, const T *b, int64_t b_row, T *c,
                  int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * LANES<T> <= columns; j += 2 * LANES<T>)
    product_block<T, R, 2, ADD>(inner, a, row, step, b + j, b_row, c + j, c_row);
  if (j < columns) product_block<T, R, 1, ADD>(inner, a, row, step, b + j, b_row, c + j, c_row);
}

// c [rows, columns] (+)= a · b, columns a multiple of the vector length; a may be read transposed through its strides.
template <class T, bool ADD>
void product(int64_t rows, int64_t columns, int64_t inner, const T *a, int64_t row, int64_t step, const T *b, int64_t b_row,
             T *c, int64_t c_row) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    product_rows<T, ROWS, ADD>(columns, inner, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
  for (; r + 2 <= rows; r += 2)
    product_rows<T, 2, ADD>(columns, inner, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
  if (r < rows) product_rows<T, 1, ADD>(columns, inner, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
}

template <class T> Vec<T> power(Vec<T> x, double exponent) {
  if (exponent == 2) return x * x;
  const int64_t whole = exponent <= LARGEST_MULTIPLIED_POWER ? int64_t(exponent) : 0;
  Vec<T> result = Vec<T>{} + T(1);
  if (double(whole) != exponent) {
    for (int i = 0; i < LANES<T>; ++i) result[i] = std::pow(x[i], T(exponent));
    return result;
  }
  for (int64_t bits = whole; bits; bits >>= 1, x *= x)  // square and multiply
    if (bits & 1) result *= x;
  return result;
}

// One kind of token (queries or keys) of one sample, and how its channels lie.
template <class T> struct Tokens {
  const T *first;  // of this sample
  int64_t head_stride, stride;
  const T *encoding;  // of [H, tokens, D], or null
  int64_t encoding_head_stride, encoding_stride;
};

template <class T> struct Shape {
  int64_t heads, channels, row;  // row: padded channels of all heads
  int64_t groups, group_heads;   // over whose channels a norm runs
  const T *inverse_temperature;  // [H, padded D], times the shift, zero in the padding
  T eps, shift;
  T large;  // with such a peak of all heads the eps is no match for powers of a weaker head that underflow
  double power;

  Shape(const Problem &p, const T *inverse)
      : heads(p.heads),
        channels(p.channels),
        row(p.heads * padded<T>(p.channels)),
        groups(p.joint ? 1 : p.heads),
        group_heads(p.joint ? p.heads : 1),
        inverse_temperature(inverse),
        eps(T(p.eps)),
        shift(T(p.shift)),
        large(T(p.shift * std::sqrt(p.eps / std::numeric_limits<T>::min()) / 1e6)),
        power(p.focusing_factor) {}
  int64_t head() const { return row / heads; }
  // Of the normaliser of a query whose features have this gain, where those of the keys are shifted.
  T margin(T gain) const { return eps * shift / std::max(gain, std::numeric_limits<T>::min()) * shift; }
};

// φ of a tile of tokens, split as gain · u**p with u = a / peak: [TILE, H, padded D] each, and numbers a token and head.
template <class T> struct Features {
  Buffer<T> unit, less, powered;                      // u, u**(p-1), u**p
  Buffer<T> gain, margin;                             // margin: what eps adds to the normaliser of a query
  Buffer<T> inverse_peak, unit_share, power_share;  // shares: ρ² / R² and ρ**2p / S², see README.md

  Features(Memory &memory, const Shape<T> &s)
      : unit(memory, TILE * s.row),
        less(memory, TILE * s.row),
        powered(memory, TILE * s.row),
        gain(memory, TILE * s.heads),
        margin(memory, TILE * s.heads),
        inverse_peak(memory, TILE * s.heads),
        unit_share(memory, TILE * s.heads),
        power_share(memory, TILE * s.heads) {}

  // KEEP what differentiate() needs; otherwise u**p, gains and margins are all.
  template <bool KEEP> void fill(const Shape<T> &s, const Tokens<T> &x, int64_t start, int64_t count) {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t from = g * s.group_heads, until = from + s.group_heads;
        const T most = read(s, x, start + t, from, until, &unit[t * s.row + from * s.head()]);
        if (s.power == 3) {
          focus<KEEP>(s, t, from, until, most, [](Vec<T> u) { return u * u; });
        } else {
          focus<KEEP>(s, t, from, until, most, [&](Vec<T> u) { return power<T>(u, s.power - 1); });
        }
      }
  }

  // Writes a = (ReLU(x) + eps) / temperature for some heads of a token, returns its largest entry.
  static T read(const Shape<T> &s, const Tokens<T> &x, int64_t token, int64_t from, int64_t to, T *a) {
    const int64_t head = s.head();
    const T *inverse = s.inverse_temperature + from * head;
    Vec<T> most{};
    for (int64_t h = from; h < to; ++h)
      for (int64_t d = 0; d < head; d += LANES<T>, a += LANES<T>, inverse += LANES<T>) {
        __builtin_prefetch(x.first + h * x.head_stride + (token + AHEAD) * x.stride + d);
        Vec<T> channels = raw(s, x, token, h, d);
        channels = ((channels < 0 ? Vec<T>{} : channels) + s.eps) * load(inverse);  // a NaN stays one
        store(a, channels);
        most = channels > most ? channels : most;
      }
    return std::max(largest<T>(most), std::numeric_limits<T>::min());
  }

  // From a of the heads of one norm and its largest entry: their features. The heads have one peak, but for large ones.
  template <bool KEEP, class Below>
  void focus(const Shape<T> &s, int64_t t, int64_t from, int64_t until, T most, Below below) {
    const int64_t together = most > s.large ? 1 : until - from;
    T squares = 0, power_squares = 0;
    for (int64_t h = from; h < until; h += together) {
      const T own = together == 1 ? largest_entry(s, &unit[t * s.row + h * s.head()]) : most;
      const T share = own / most, raised = share == 1 ? 1 : power_of(share, s.power);
      const auto [of_unit, of_power] = raise<KEEP>(s, t * s.row + h * s.head(), together, own, below);
      squares += of_unit * share * share, power_squares += of_power * raised * raised;
      inverse_peak[t * s.heads + h] = 1 / own, unit_share[t * s.heads + h] = share, power_share[t * s.heads + h] = raised;
    }
    const T ratio = most * (std::sqrt(squares) / std::sqrt(power_squares));
    for (int64_t h = from; h < until; h += together) {
      const int64_t first = t * s.heads + h;
      const T of_unit = unit_share[first] * unit_share[first] / squares;
      const T of_power = power_share[first] * power_share[first] / power_squares;
      const T of_gain = ratio * power_share[first], of_margin = s.margin(of_gain), of_peak = inverse_peak[first];
      for (int64_t i = first; i < first + together; ++i) {
        gain[i] = of_gain, margin[i] = of_margin;
        if (KEEP) inverse_peak[i] = of_peak, unit_share[i] = of_unit, power_share[i] = of_power;
      }
    }
  }

  static T largest_entry(const Shape<T> &s, const T *a) {
    Vec<T> most{};
    for (int64_t d = 0; d < s.head(); d += LANES<T>) most = load(a + d) > most ? load(a + d) : most;
    return std::max(largest<T>(most), std::numeric_limits<T>::min());
  }

  static T power_of(T x, double exponent) {
    Vec<T> one{};
    one[0] = x;
    return power<T>(one, exponent)[0];
  }

  // Returns the sums of squares of u and of u**p over a few heads.
  template <bool KEEP, class Below>
  std::pair<T, T> raise(const Shape<T> &s, int64_t j, int64_t heads, T peak, Below below) {
    const T inverse = 1 / peak;
    const bool exact = inverse < std::numeric_limits<T>::max() && inverse >= std::numeric_limits<T>::min();
    T *u = &unit[j], *l = &less[j], *up = &powered[j];
    Vec<T> squares{}, power_squares{};
    for (int64_t d = 0; d < heads * s.head(); d += LANES<T>) {
      const Vec<T> one = exact ? load(u + d) * inverse : load(u + d) / peak, lower = below(one), whole = lower * one;
      if (KEEP) store(u + d, one), store(l + d, lower);
      store(up + d, whole);
      squares += one * one, power_squares += whole * whole;
    }
    return {sum<T>(squares), sum<T>(power_squares)};
  }

  // The token's channels from d on, with their encoding, before ReLU.
  static Vec<T> raw(const Shape<T> &s, const Tokens<T> &x, int64_t token, int64_t h, int64_t d) {
    const int64_t left = s.channels - d;
    const T *from = x.first + h * x.head_stride + token * x.stride + d;
    Vec<T> a = load(from, left);
    if (x.encoding) a += load(x.encoding + h * x.encoding_head_stride + token * x.encoding_stride + d, left);
    return a;
  }

  // From gain times the gradient of φ, [TILE, H, padded D], to that of the tokens, [tokens, H, D], and of the temperature.
  void differentiate(const Shape<T> &s, const Tokens<T> &x, int64_t start, int64_t count, const T *gradient, T *to,
                     T *of_temperature) const {
    const int64_t head = s.head();
    for (int64_t t = 0; t < count; ++t)
      for (int64_t g = 0; g < s.groups; ++g) {
        const int64_t from = g * s.group_heads, until = from + s.group_heads, line = t * s.row;
        Vec<T> products{};
        for (int64_t j = line + from * head; j < line + until * head; j += LANES<T>)
          products += load(gradient + j) * load(&powered[j]);
        const T along = sum<T>(products), exponent = T(s.power);
        for (int64_t h = from; h < until; ++h) {
          const int64_t i = t * s.heads + h;
          const T inverse = inverse_peak[i], of_unit = along * unit_share[i], of_power = along * power_share[i];
          for (int64_t d = 0; d < head; d += LANES<T>) {
            const int64_t j = line + h * head + d;
            const Vec<T> u = load(&unit[j]);
            Vec<T> of_a = exponent * load(&less[j]) * (load(gradient + j) - of_power * load(&powered[j])) + of_unit * u;
            of_a *= load(s.inverse_temperature + h * head + d);
            T *sums = of_temperature + h * head + d;
            store(sums, load(sums) - of_a * u);
            const Vec<T> a = raw(s, x, start + t, h, d);
            store(to + ((start + t) * s.heads + h) * s.channels + d, a > 0 ? of_a * inverse : Vec<T>{}, s.channels - d);
          }
        }
      }
  }
};

// Rank restoration: the kernels as [taps, padded E], and the grid that the last tokens of the values form.
template <class T> struct Convolution {
  int64_t height, width, rows, columns, prefix, channels, line;
  Buffer<T> taps, bias, zeros;

  Convolution(Memory &memory, const Problem &p)
      : height(p.height),
        width(p.width),
        rows(p.kernel_height),
        columns(p.kernel_width),
        prefix(p.keys - p.height * p.width),
        channels(p.value_channels),
        line(padded<T>(p.value_channels)),
        taps(memory, rows * columns * line),
        bias(memory, line),
        zeros(memory, 2 * LANES<T>) {
    if (!present() || memory.exhausted) return;
    const T *weight = static_cast<const T *>(p.conv_weight), *offset = static_cast<const T *>(p.conv_bias);
    for (int64_t e = 0; e < channels; ++e) {
      if (offset) bias[e] = offset[e];
      for (int64_t tap = 0; tap < rows * columns; ++tap) taps[tap * line + e] = weight[e * rows * columns + tap];
    }
  }
  bool present() const { return rows > 0; }

  // Add the convolution at `count` tokens, or its transpose, to rows of E channels; x holds the tokens of one head.
  template <bool TRANSPOSED>
  void add(const T *x, int64_t stride, int64_t token, int64_t count, T *to, int64_t to_stride) const {
    for (const int64_t end = token + count; token < end;) {
      int64_t done = 1;
      if (token >= prefix) {
        const int64_t y = (token - prefix) / width, column = (token - prefix) % width;
        const int64_t together = std::min(end - token, width - column);  // on one row of the grid
        done = together >= 4 ? 4 : together >= 2 ? 2 : 1;
        const auto some = done == 4   ? &Convolution::add_some<TRANSPOSED, 4>
                          : done == 2 ? &Convolution::add_some<TRANSPOSED, 2>
                                      : &Convolution::add_some<TRANSPOSED, 1>;
        (this->*some)(x, stride, y, column, to, to_stride);
      }
      token += done, to += done * to_stride;
    }
  }

  template <bool TRANSPOSED, int N>
  void add_some(const T *x, int64_t stride, int64_t y, int64_t column, T *to, int64_t to_stride) const {
    for (int64_t first = 0; first < columns;) {
      if (columns - first >= 5) {
        add_taps<TRANSPOSED, N, 5>(x, stride, y, column, first, to, to_stride), first += 5;
      } else if (columns - first >= 3) {
        add_taps<TRANSPOSED, N, 3>(x, stride, y, column, first, to, to_stride), first += 3;
      } else {
        add_taps<TRANSPOSED, N, 1>(x, stride, y, column, first, to, to_stride), first += 1;
      }
    }
  }

  // The columns first … first + K - 1 of the kernel: a width the compiler knows keeps the sums in registers.
  template <bool TRANSPOSED, int N, int K>
  void add_taps(const T *x, int64_t stride, int64_t y, int64_t column, int64_t first, T *to, int64_t to_stride) const {
    int64_t e = 0;
    for (; e + 2 * LANES<T> <= channels; e += 2 * LANES<T>)
      add_vectors<TRANSPOSED, N, K, 2, true>(x, stride, y, column, first, e, to, to_stride);
    for (; e + LANES<T> <= channels; e += LANES<T>)
      add_vectors<TRANSPOSED, N, K, 1, true>(x, stride, y, column, first, e, to, to_stride);
    if (e < channels) add_vectors<TRANSPOSED, N, K, 1, false>(x, stride, y, column, first, e, to, to_stride);
  }

  // N neighbours share the loads of the tokens around them; beyond the edge lie zeros.
  template <bool TRANSPOSED, int N, int K, int C, bool WHOLE>
  void add_vectors(const T *x, int64_t stride, int64_t y, int64_t column, int64_t first, int64_t e, T *to,
                   int64_t to_stride) const {
    const int64_t above = rows / 2, left = channels - e;
    const int64_t start = TRANSPOSED ? column + columns / 2 - first - (K - 1) : column - columns / 2 + first;
    int64_t offsets[K + N - 1];
    bool inside[K + N - 1];
    for (int i = 0; i < K + N - 1; ++i) {
      inside[i] = start + i >= 0 && start + i < width;
      offsets[i] = inside[i] ? (start + i) * stride : 0;
    }
    Vec<T> totals[N][C] = {};
    for (int64_t row = std::max<int64_t>(0, y - above); row <= std::min(height - 1, y + above); ++row) {
      const T *tokens = x + (prefix + row * width) * stride + e;
      const int64_t tap_row = TRANSPOSED ? y - row + above : row - y + above;
      const T *tap = &taps[(tap_row * columns + first + (TRANSPOSED ? K - 1 : 0)) * line + e];
#pragma GCC unroll 16
      for (int i = 0; i < K + N - 1; ++i) {
        const T *from = inside[i] ? tokens + offsets[i] : zeros.data();
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          const Vec<T> value = WHOLE ? load(from + c * LANES<T>) : load(from, left);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n)
            if (i - n >= 0 && i - n < K)
              totals[n][c] += value * load(tap + (TRANSPOSED ? n - i : i - n) * line + c * LANES<T>);
        }
      }
    }
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) {
        T *sum = to + n * to_stride + e + c * LANES<T>;
        if (!TRANSPOSED && first == 0) totals[n][c] += load(&bias[e + c * LANES<T>]);
        store(sum, load(sum, left) + totals[n][c], left);
      }
  }

  // Add Σ_x grad[y, x] value[y + row, x + column + i] for K taps of one row of the kernel to of_taps.
  template <int K>
  void correlate(const T *grad, int64_t grad_stride, const T *value, int64_t stride, int64_t e, int64_t shift,
                 T *of_taps) const {
    Vec<T> sums[K] = {};
    const int64_t left = channels - e;
    for (int64_t x = 0; x < width; ++x) {
      const Vec<T> g = load(grad + x * grad_stride, left);
      for (int i = 0; i < K; ++i) {
        const int64_t at = x + shift + i;
        if (at >= 0 && at < width) sums[i] += g * load(value + at * stride, left);
      }
    }
    for (int i = 0; i < K; ++i) store(of_taps + i * line, load(of_taps + i * line) + sums[i]);
  }

  // Add one row's part of the gradients of taps and bias, for one head.
  void differentiate(const T *grad, int64_t grad_stride, const T *value, int64_t stride, int64_t y, T *of_taps,
                     T *of_bias) const {
    const T *grad_row = grad + (prefix + y * width) * grad_stride;
    for (int64_t e = 0; e < channels; e += LANES<T>) {
      Vec<T> total{};
      for (int64_t x = 0; x < width; ++x) total += load(grad_row + x * grad_stride + e, channels - e);
      store(of_bias + e, load(of_bias + e) + total);
      for (int64_t row = std::max<int64_t>(0, rows / 2 - y); row < std::min(rows, height - y + rows / 2); ++row) {
        const T *value_row = value + (prefix + (y + row - rows / 2) * width) * stride + e;
        for (int64_t column = 0; column < columns;) {
          T *to = of_taps + (row * columns + column) * line + e;
          const int64_t shift = column - columns / 2;
          if (columns - column >= 5) {
            correlate<5>(grad_row + e, grad_stride, value_row, stride, e, shift, to), column += 5;
          } else if (columns - column >= 3) {
            correlate<3>(grad_row + e, grad_stride, value_row, stride, e, shift, to), column += 3;
          } else {
            correlate<1>(grad_row + e, grad_stride, value_row, stride, e, shift, to), column += 1;
          }
        }
      }
    }
  }
};

template <class T> void invert_temperature(const Problem &p, T *inverse) {
  const int64_t head = padded<T>(p.channels);
  const T *temperature = static_cast<const T *>(p.temperature);
  for (int64_t h = 0; h < p.heads; ++h)
    for (int64_t d = 0; d < p.channels; ++d)
      inverse[h * head + d] = T(p.shift) / (temperature ? temperature[h * p.channels + d] : 1);
}

struct Split {  // of tokens into ranges, by their number alone
  int64_t size, count;
  explicit Split(int64_t tokens) {
    size = std::max(TOKENS_A_SPLIT, (tokens + MOST_SPLITS - 1) / MOST_SPLITS + TILE - 1) / TILE * TILE;
    count = (tokens + size - 1) / size;
  }
};

// Whether the sizes of all buffers, in elements, are far from what int64_t holds.
bool countable(const Problem &p) {
  constexpr double MOST = 0x1p58, PADDING = 64;
  const double matrices = (p.channels + PADDING) * (p.value_channels + PADDING) * p.heads * p.batch * 2 * MOST_SPLITS;
  const double taps = (double(p.kernel_height) * p.kernel_width + 1) * (p.value_channels + PADDING) * p.height * p.batch;
  return matrices * TILE < MOST && taps < MOST;
}

// Everything about one call that is the same for all samples.
template <class T> struct Call {
  const Problem &p;
  Memory &memory;
  Buffer<T> inverse;
  Shape<T> shape;
  Convolution<T> convolution;
  int64_t head, line;  // padded D and E

  Call(Memory &available, const Problem &problem)
      : p(problem),
        memory(available),
        inverse(memory, p.heads * padded<T>(p.channels)),
        shape(p, inverse.data()),
        convolution(memory, p),
        head(shape.head()),
        line(padded<T>(p.value_channels)) {
    if (!memory.exhausted) invert_temperature(p, inverse.data());
  }

  Tokens<T> queries(int64_t b) const {
    return {static_cast<const T *>(p.query) + b * p.query_strides[0], p.query_strides[1], p.query_strides[2], nullptr, 0, 0};
  }
  Tokens<T> keys(int64_t b) const {
    return {static_cast<const T *>(p.key) + b * p.key_strides[0],
            p.key_strides[1],
            p.key_strides[2],
            static_cast<const T *>(p.key_encoding),
            p.encoding_strides[0],
            p.encoding_strides[1]};
  }
  const T *values(int64_t b, int64_t h) const {
    return static_cast<const T *>(p.value) + b * p.value_strides[0] + h * p.value_strides[1];
  }
  const T *grads(int64_t b, int64_t h) const {
    return static_cast<const T *>(p.grad) + (b * p.queries * p.heads + h) * p.value_channels;
  }
  int64_t grad_stride() const { return p.heads * p.value_channels; }
  T weight(int64_t b, int64_t token) const {
    return p.key_weights ? static_cast<const T *>(p.key_weights)[b * p.keys + token] : T(1) / T(p.keys);
  }
  // One over what the weights of a query add up to, 0 where that leaves the range of T.
  static T share(T products, T margin) {
    const T total = products + margin;
    return total < (sizeof(T) == 4 ? T(1e-35) : T(1e-300)) ? 0 : 1 / total;  // a NaN stays one
  }
  int64_t context_size() const { return p.heads * shape.channels * line; }

  // A tile of rows of E channels, padded with zeros, each times its scale if there are any.
  void gather(const T *from, int64_t stride, int64_t count, T *to, const T *scales = nullptr) const {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t e = 0; e < line; e += LANES<T>) {
        __builtin_prefetch(from + (t + AHEAD) * stride + e);
        const Vec<T> row = load(from + t * stride + e, p.value_channels - e);
        store(to + t * line + e, scales ? row * scales[t] : row);
      }
  }
  // context [H, D, E] and key_sum [H, D] of one sample, padded.
  void read_context(const T *context, const T *key_sum, T *padded_context, T *padded_sum) const {
    for (int64_t i = 0; i < p.heads * p.channels; ++i) {
      for (int64_t e = 0; e < p.value_channels; ++e) padded_context[i * line + e] = context[i * p.value_channels + e];
      padded_sum[i / p.channels * head + i % p.channels] = key_sum[i];
    }
  }
};

// Σ_j w_j φ(k_j)ᵀ v_j and Σ_j w_j φ(k_j) over one range of keys.
template <class T> void sum_keys(const Call<T> &c, int64_t b, int64_t start, int64_t end, T *context, T *key_sum) {
  Features<T> keys(c.memory, c.shape);
  Buffer<T> values(c.memory, TILE * c.line);
  if (c.memory.exhausted) return;
  const Tokens<T> tokens = c.keys(b);
  for (int64_t at = start; at < end; at += TILE) {
    const int64_t count = std::min(TILE, end - at);
    keys.template fill<false>(c.shape, tokens, at, count);
    for (int64_t h = 0; h < c.p.heads; ++h) {
      const T *features = &keys.powered[h * c.head];
      T scales[TILE];
      for (int64_t t = 0; t < count; ++t) scales[t] = c.weight(b, at + t) * keys.gain[t * c.p.heads + h];
      for (int64_t d = 0; d < c.head; d += LANES<T>) {
        Vec<T> total{};
        for (int64_t t = 0; t < count; ++t) total += load(features + t * c.shape.row + d) * scales[t];
        T *sum = key_sum + h * c.head + d;
        store(sum, load(sum) + total);
      }
      c.gather(c.values(b, h) + at * c.p.value_strides[2], c.p.value_strides[2], count, values.data(), scales);
      product<T, true>(c.p.channels, c.line, count, features, 1, c.shape.row, values.data(), c.line,
                       context + h * c.p.channels * c.line, c.line);
    }
  }
}

template <class T>
void forward_queries(const Call<T> &c, int64_t b, int64_t start, int64_t end, const T *context, const T *key_sum) {
  Features<T> queries(c.memory, c.shape);
  Buffer<T> sums(c.memory, TILE * c.line);
  if (c.memory.exhausted) return;
  const Tokens<T> tokens = c.queries(b);
  const int64_t channels = c.p.value_channels;
  for (int64_t at = start; at < end; at += TILE) {
    const int64_t count = std::min(TILE, end - at);
    queries.template fill<false>(c.shape, tokens, at, count);
    for (int64_t h = 0; h < c.p.heads; ++h) {
      const T *features = &queries.powered[h * c.head];
      product<T, false>(count, c.line, c.p.channels, features, c.shape.row, 1, context + h * c.p.channels * c.line, c.line,
                        sums.data(), c.line);
      for (int64_t t = 0; t < count; ++t) {
        Vec<T> products{};
        for (int64_t d = 0; d < c.head; d += LANES<T>)
          products += load(features + t * c.shape.row + d) * load(key_sum + h * c.head + d);
        const T share = c.share(sum<T>(products), queries.margin[t * c.p.heads + h]);
        T *out = static_cast<T *>(c.p.out) + ((b * c.p.queries + at + t) * c.p.heads + h) * channels;
        for (int64_t e = 0; e < channels; e += LANES<T>) store(out + e, load(&sums[t * c.line + e]) * share, channels - e);
      }
      T *out = static_cast<T *>(c.p.out) + ((b * c.p.queries + at) * c.p.heads + h) * channels;
      if (c.convolution.present())
        c.convolution.template add<false>(c.values(b, h), c.p.value_strides[2], at, count, out, c.p.heads * channels);
    }
  }
}

// Adds this range's part of the gradients of context, key_sum and temperature; writes that of the queries.
template <class T>
void backward_queries(const Call<T> &c, int64_t b, int64_t start, int64_t end, const T *context, const T *transposed,
                      const T *key_sum, T *of_context, T *of_key_sum, T *of_temperature) {
  Features<T> queries(c.memory, c.shape);
  Buffer<T> sums(c.memory, TILE * c.line), grads(c.memory, TILE * c.line), of_features(c.memory, TILE * c.shape.row);
  if (c.memory.exhausted) return;
  const Tokens<T> tokens = c.queries(b);
  T *to = static_cast<T *>(c.p.grad_query) + b * c.p.queries * c.p.heads * c.p.channels;
  for (int64_t at = start; at < end; at += TILE) {
    const int64_t count = std::min(TILE, end - at);
    queries.template fill<true>(c.shape, tokens, at, count);
    for (int64_t h = 0; h < c.p.heads; ++h) {
      const T *features = &queries.powered[h * c.head];
      product<T, false>(count, c.line, c.p.channels, features, c.shape.row, 1, context + h * c.p.channels * c.line, c.line,
                        sums.data(), c.line);
      c.gather(c.grads(b, h) + at * c.grad_stride(), c.grad_stride(), count, grads.data());
      T along[TILE];
      for (int64_t t = 0; t < count; ++t) {
        Vec<T> products{}, agreement{};
        for (int64_t d = 0; d < c.head; d += LANES<T>)
          products += load(features + t * c.shape.row + d) * load(key_sum + h * c.head + d);
        const T share = c.share(sum<T>(products), queries.margin[t * c.p.heads + h]);
        for (int64_t e = 0; e < c.line; e += LANES<T>) {
          const Vec<T> scaled = load(&grads[t * c.line + e]) * share;
          agreement += scaled * load(&sums[t * c.line + e]);
          store(&grads[t * c.line + e], scaled);
        }
        along[t] = sum<T>(agreement) * share;
        for (int64_t d = 0; d < c.head; d += LANES<T>) {
          T *of_sum = of_key_sum + h * c.head + d;
          store(of_sum, load(of_sum) - load(features + t * c.shape.row + d) * along[t]);
        }
      }
      product<T, true>(c.p.channels, c.line, count, features, 1, c.shape.row, grads.data(), c.line,
                       of_context + h * c.p.channels * c.line, c.line);
      T *of_feature = &of_features[h * c.head];
      product<T, false>(count, c.head, c.p.value_channels, grads.data(), c.line, 1,
                        transposed + h * c.p.value_channels * c.head, c.head, of_feature, c.shape.row);
      for (int64_t t = 0; t < count; ++t)
        for (int64_t d = 0; d < c.head; d += LANES<T>) {
          T *of = of_feature + t * c.shape.row + d;
          store(of, load(of) - load(key_sum + h * c.head + d) * along[t]);
        }
    }
    queries.differentiate(c.shape, tokens, at, count, of_features.data(), to, of_temperature);
  }
}

// Writes the gradients of keys and values; of_context and its transpose are complete by now.
template <class T>
void backward_keys(const Call<T> &c, int64_t b, int64_t start, int64_t end, const T *of_context, const T *transposed,
                   const T *of_key_sum, T *of_temperature) {
  Features<T> keys(c.memory, c.shape);
  Buffer<T> values(c.memory, TILE * c.line), sums(c.memory, TILE * c.line), of_features(c.memory, TILE * c.shape.row);
  if (c.memory.exhausted) return;
  const Tokens<T> tokens = c.keys(b);
  const int64_t channels = c.p.value_channels;
  T *to = static_cast<T *>(c.p.grad_key) + b * c.p.keys * c.p.heads * c.p.channels;
  for (int64_t at = start; at < end; at += TILE) {
    const int64_t count = std::min(TILE, end - at);
    keys.template fill<true>(c.shape, tokens, at, count);
    for (int64_t h = 0; h < c.p.heads; ++h) {
      const T *features = &keys.powered[h * c.head];
      product<T, false>(count, c.line, c.p.channels, features, c.shape.row, 1, of_context + h * c.p.channels * c.line,
                        c.line, sums.data(), c.line);
      c.gather(c.values(b, h) + at * c.p.value_strides[2], c.p.value_strides[2], count, values.data());
      T *of_feature = &of_features[h * c.head];
      product<T, false>(count, c.head, channels, values.data(), c.line, 1, transposed + h * channels * c.head, c.head,
                        of_feature, c.shape.row);
      for (int64_t t = 0; t < count; ++t) {
        const T scale = c.weight(b, at + t) * keys.gain[t * c.p.heads + h];
        T *of_value = static_cast<T *>(c.p.grad_value) + ((b * c.p.keys + at + t) * c.p.heads + h) * channels;
        for (int64_t e = 0; e < channels; e += LANES<T>)
          store(of_value + e, load(&sums[t * c.line + e]) * scale, channels - e);
        for (int64_t d = 0; d < c.head; d += LANES<T>) {
          T *of = of_feature + t * c.shape.row + d;
          store(of, (load(of) + load(of_key_sum + h * c.head + d)) * scale);
        }
      }
      T *of_value = static_cast<T *>(c.p.grad_value) + ((b * c.p.keys + at) * c.p.heads + h) * channels;
      if (c.convolution.present())
        c.convolution.template add<true>(c.grads(b, h), c.grad_stride(), at, count, of_value, c.p.heads * channels);
    }
    keys.differentiate(c.shape, tokens, at, count, of_features.data(), to, of_temperature);
  }
}

template <class T> void add_up(const Buffer<T> &parts, int64_t count, int64_t size, T *total) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < size; ++j) total[j] += parts[i * size + j];
}

template <class T>
void transpose(const Buffer<T> &context, int64_t matrices, int64_t rows, int64_t columns, int64_t from, int64_t to,
               T *transposed) {
  for (int64_t m = 0; m < matrices; ++m)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < columns; ++j) transposed[(m * columns + j) * to + r] = context[(m * rows + r) * from + j];
}

template <class T> void forward(Memory &memory, const Problem &p) {
  const Call<T> c(memory, p);
  const int64_t size = c.context_size(), row = c.shape.row;
  const Split keys(p.keys), queries(p.queries);
  Buffer<T> contexts(memory, p.batch * keys.count * size), sums(memory, p.batch * keys.count * row);
  if (memory.exhausted) return;
#pragma omp parallel num_threads(int(p.threads))
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < p.batch * keys.count; ++i) {
      const int64_t b = i / keys.count, start = i % keys.count * keys.size;
      sum_keys(c, b, start, std::min(p.keys, start + keys.size), &contexts[i * size], &sums[i * row]);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < p.batch; ++b) {
      T *context = &contexts[b * keys.count * size], *sum = &sums[b * keys.count * row];
      for (int64_t i = 1; i < keys.count; ++i) {
        for (int64_t j = 0; j < size; ++j) context[j] += context[i * size + j];
        for (int64_t j = 0; j < row; ++j) sum[j] += sum[i * row + j];
      }
      for (int64_t i = 0; i < p.heads * p.channels; ++i) {
        T *to = static_cast<T *>(p.context) + (b * p.heads * p.channels + i) * p.value_channels;
        std::copy_n(context + i * c.line, p.value_channels, to);
        static_cast<T *>(p.key_sum)[b * p.heads * p.channels + i] = sum[i / p.channels * c.head + i % p.channels];
      }
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < p.batch * queries.count; ++i) {
      const int64_t b = i / queries.count, start = i % queries.count * queries.size;
      forward_queries(c, b, start, std::min(p.queries, start + queries.size), &contexts[b * keys.count * size],
                      &sums[b * keys.count * row]);
    }
  }
}

template <class T> void backward(Memory &memory, const Problem &p) {
  const Call<T> c(memory, p);
  const int64_t size = c.context_size(), row = c.shape.row, head = c.head, line = c.line;
  const int64_t matrix = p.heads * p.channels, transposed_size = p.heads * p.value_channels * head;
  const Split keys(p.keys), queries(p.queries);
  Buffer<T> contexts(memory, p.batch * size), sums(memory, p.batch * row), transposed(memory, p.batch * transposed_size);
  if (memory.exhausted) return;
  for (int64_t b = 0; b < p.batch; ++b)
    c.read_context(static_cast<const T *>(p.context) + b * matrix * p.value_channels,
                   static_cast<const T *>(p.key_sum) + b * matrix, &contexts[b * size], &sums[b * row]);
  transpose(contexts, p.batch * p.heads, p.channels, p.value_channels, line, head, transposed.data());

  const int64_t query_parts = p.batch * queries.count, key_parts = p.batch * keys.count;
  Buffer<T> of_contexts(memory, query_parts * size), of_sums(memory, query_parts * row),
      of_temperatures(memory, (query_parts + key_parts) * row);
  Buffer<T> of_context(memory, p.batch * size), of_sum(memory, p.batch * row);
  Buffer<T> of_transposed(memory, p.batch * transposed_size);
  if (memory.exhausted) return;
#pragma omp parallel for schedule(dynamic) num_threads(int(p.threads))
  for (int64_t i = 0; i < query_parts; ++i) {
    const int64_t b = i / queries.count, start = i % queries.count * queries.size;
    backward_queries(c, b, start, std::min(p.queries, start + queries.size), &contexts[b * size],
                     &transposed[b * transposed_size], &sums[b * row], &of_contexts[i * size], &of_sums[i * row],
                     &of_temperatures[i * row]);
  }
  if (memory.exhausted) return;
  for (int64_t i = 0; i < query_parts; ++i) {
    const int64_t b = i / queries.count;
    for (int64_t j = 0; j < size; ++j) of_context[b * size + j] += of_contexts[i * size + j];
    for (int64_t j = 0; j < row; ++j) of_sum[b * row + j] += of_sums[i * row + j];
  }
  transpose(of_context, p.batch * p.heads, p.channels, p.value_channels, line, head, of_transposed.data());
#pragma omp parallel for schedule(dynamic) num_threads(int(p.threads))
  for (int64_t i = 0; i < key_parts; ++i) {
    const int64_t b = i / keys.count, start = i % keys.count * keys.size;
    backward_keys(c, b, start, std::min(p.keys, start + keys.size), &of_context[b * size],
                  &of_transposed[b * transposed_size], &of_sum[b * row], &of_temperatures[(query_parts + i) * row]);
  }

  if (p.grad_temperature) {
    Buffer<T> total(memory, row);
    if (memory.exhausted) return;
    add_up(of_temperatures, query_parts + key_parts, row, total.data());
    for (int64_t i = 0; i < matrix; ++i)
      static_cast<T *>(p.grad_temperature)[i] = total[i / p.channels * head + i % p.channels] / T(p.shift);
  }
  if (!c.convolution.present()) return;
  const int64_t taps = p.kernel_height * p.kernel_width, kernel = (taps + 1) * line;
  const int64_t band = std::max<int64_t>(1, TOKENS_A_SPLIT / p.width), bands = (p.height + band - 1) / band;
  Buffer<T> parts(memory, p.batch * bands * kernel), total(memory, kernel);
  if (memory.exhausted) return;
#pragma omp parallel for schedule(dynamic) num_threads(int(p.threads))
  for (int64_t i = 0; i < p.batch * bands; ++i) {
    const int64_t b = i / bands, first = i % bands * band;
    T *of_taps = &parts[i * kernel];
    for (int64_t y = first; y < std::min(p.height, first + band); ++y)
      for (int64_t h = 0; h < p.heads; ++h)
        c.convolution.differentiate(c.grads(b, h), c.grad_stride(), c.values(b, h), p.value_strides[2], y, of_taps,
                                    of_taps + taps * line);
  }
  add_up(parts, p.batch * bands, kernel, total.data());
  for (int64_t e = 0; e < p.value_channels; ++e) {
    for (int64_t tap = 0; tap < taps; ++tap) static_cast<T *>(p.grad_conv_weight)[e * taps + tap] = total[tap * line + e];
    if (p.grad_conv_bias) static_cast<T *>(p.grad_conv_bias)[e] = total[taps * line + e];
  }
}

// Whether a temperature lies outside the range that check_positive demands.
template <class T> bool refuses(const Problem &p) {
  const double least = std::numeric_limits<float>::min();
  const T *temperature = static_cast<const T *>(p.temperature);
  return temperature && !std::all_of(temperature, temperature + p.heads * p.channels,
                                     [=](T t) { return double(t) >= least && double(t) <= 1 / least; });
}

// Return 0, 1 where memory is not enough, or 2 for a temperature that no attention has; what was written means nothing then.
template <class T> int run(void (*direction)(Memory &, const Problem &), const Problem &p) {
  Memory memory;
  if (!countable(p)) return 1;
  if (refuses<T>(p)) return 2;
  direction(memory, p);
  return memory.exhausted;
}

}  // namespace

extern "C" {
int focused_forward_float(const Problem *p) { return run<float>(forward<float>, *p); }
int focused_forward_double(const Problem *p) { return run<double>(forward<double>, *p); }
int focused_backward_float(const Problem *p) { return run<float>(backward<float>, *p); }
int focused_backward_double(const Problem *p) { return run<double>(backward<double>, *p); }
}
