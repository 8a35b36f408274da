// Batch norm + relu over channels-last activations, one function a direction, for CPUs. See norm_relu.py.
//
// x is a matrix of `rows` = N*H*W by `channels`, float or bfloat16 (stored as uint16_t). Loops run along the channels, so
// compilers vectorise them without reordering a sum. Sums of 256 rows are in float, sums of those in double; each thread
// owns a fixed range of rows and the ranges are added in order, so a result depends on the number of threads alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {
constexpr long kBlock = 256;  // rows whose sums are kept in float
constexpr long kWide = 128;   // columns whose sums fit into registers

inline float load(const float* p) { return *p; }
inline float load(const uint16_t* p) {
  uint32_t bits = uint32_t(*p) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(uint16_t* p, float value) {  // to nearest, ties to even; the quiet bit keeps a NaN a NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *p = uint16_t(value == value ? rounded : (bits >> 16) | 0x40);
}

// first[c], second[c] = sums over all rows of the two numbers that `term(row, channels, first, second)` adds for one row.
template <class Term>
void column_sums(long rows, long channels, int threads, double* first, double* second, Term term) {
  std::vector<double> parts(2 * channels * threads, 0.0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    double* part = parts.data() + 2 * channels * t;
    std::vector<float> sums(2 * channels);
    long end = rows * (t + 1) / threads;
    for (long begin = rows * t / threads; begin < end; begin += kBlock) {
      long stop = std::min(end, begin + kBlock);
      if (channels == kWide) {
        float a[kWide] = {}, b[kWide] = {};
        for (long r = begin; r < stop; ++r) term(r, kWide, a, b);
        std::copy(a, a + kWide, sums.data());
        std::copy(b, b + kWide, sums.data() + kWide);
      } else {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (long r = begin; r < stop; ++r) term(r, channels, sums.data(), sums.data() + channels);
      }
      for (long i = 0; i < 2 * channels; ++i) part[i] += sums[i];
    }
  }
  for (long c = 0; c < channels; ++c) {
    first[c] = second[c] = 0;
    for (int t = 0; t < threads; ++t) {
      first[c] += parts[2 * channels * t + c];
      second[c] += parts[2 * channels * t + channels + c];
    }
  }
}

// Rows of few channels leave vectors half empty: `fold` rows are read as one row of fold * channels.
long folding(long rows, long channels) {
  long fold = 1;
  while (fold * channels < kWide && rows % (2 * fold) == 0) fold *= 2;
  return fold;
}

// Batch norm as scale * x + offset.
void affine(const float* weight, const float* bias, const float* saved, long channels, std::vector<float>& scale,
            std::vector<float>& offset) {
  for (size_t i = 0; i < scale.size(); ++i) {
    long c = i % channels;
    scale[i] = weight[c] * saved[channels + c];
    offset[i] = bias[c] - saved[c] * scale[i];
  }
}

template <class T>
void normalise(const T* x, T* y, const float* s, const float* o, long count, long wide, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < count; ++r) {
    const T* __restrict in = x + r * wide;
    T* __restrict out = y + r * wide;
    for (long i = 0; i < wide; ++i) {
      float v = load(in + i) * s[i] + o[i];
      store(out + i, v < 0 ? 0 : v);
    }
  }
}

// saved: the mean, then 1 / standard deviation of every channel: given here.
template <class T>
void evaluate(const T* x, T* y, const float* weight, const float* bias, const float* saved, long rows, long channels,
              int threads) {
  long fold = folding(rows, channels), wide = fold * channels;
  std::vector<float> scale(wide), offset(wide);
  affine(weight, bias, saved, channels, scale, offset);
  normalise(x, y, scale.data(), offset.data(), rows / fold, wide, threads);
}

// saved: as above, of this batch, which the backward needs.
template <class T>
void forward(const T* x, T* y, const float* weight, const float* bias, float* running_mean, float* running_var,
             float* saved, long rows, long channels, float eps, float momentum, int threads) {
  long fold = folding(rows, channels), wide = fold * channels, count = rows / fold;
  std::vector<float> shift(wide), scale(wide), offset(wide);
  for (long i = 0; i < wide; ++i) shift[i] = load(x + i % channels);  // near the mean: no cancellation in the variance
  std::vector<double> first(wide), second(wide);
  const float* k = shift.data();
  column_sums(count, wide, threads, first.data(), second.data(), [=](long r, long n, float* __restrict a, float* __restrict b) {
    const T* row = x + r * n;
    for (long i = 0; i < n; ++i) {
      float d = load(row + i) - k[i];
      a[i] += d;
      b[i] += d * d;
    }
  });
  float *mean = saved, *invstd = saved + channels;
  for (long c = 0; c < channels; ++c) {
    double a = 0, b = 0;
    for (long i = c; i < wide; i += channels) a += first[i], b += second[i];
    double m = a / rows, var = b / rows - m * m;
    if (var < 0) var = 0;
    mean[c] = float(m + shift[c]);
    invstd[c] = float(1 / std::sqrt(var + eps));
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c];
    running_var[c] = (1 - momentum) * running_var[c] + momentum * float(var * rows / (rows - 1));
  }
  affine(weight, bias, saved, channels, scale, offset);
  normalise(x, y, scale.data(), offset.data(), count, wide, threads);
}

// dx = skip + scale * (g - mean(g) - (x - mean) * invstd^2 * mean(g * (x - mean))), where g = dy where y > 0, else 0.
// The sign of y is computed again: cheaper than reading y from memory.
template <class T>
void backward(const T* dy, const T* x, const T* skip, T* dx, const float* weight, const float* bias,
              const float* saved, float* dweight, float* dbias, long rows, long channels, int threads) {
  long fold = folding(rows, channels), wide = fold * channels, count = rows / fold;
  const float *mean = saved, *invstd = saved + channels;
  std::vector<float> center(wide), scale(wide), offset(wide), slope(wide), constant(wide);
  for (long i = 0; i < wide; ++i) center[i] = mean[i % channels];
  affine(weight, bias, saved, channels, scale, offset);
  const float *m = center.data(), *s = scale.data(), *o = offset.data();
  std::vector<double> first(wide), second(wide);
  column_sums(count, wide, threads, first.data(), second.data(), [=](long r, long n, float* __restrict a, float* __restrict b) {
    const T *grad = dy + r * n, *in = x + r * n;
    for (long i = 0; i < n; ++i) {
      float v = load(in + i), g = load(grad + i);
      g = v * s[i] + o[i] <= 0 ? 0 : g;
      a[i] += g;
      b[i] += g * (v - m[i]);
    }
  });
  for (long c = 0; c < channels; ++c) {
    double a = 0, b = 0;
    for (long i = c; i < wide; i += channels) a += first[i], b += second[i];
    dbias[c] = float(a);
    dweight[c] = float(b * invstd[c]);
    for (long i = c; i < wide; i += channels) {
      slope[i] = float(-s[c] * invstd[c] * invstd[c] * b / rows);
      constant[i] = float(-s[c] * a / rows);
    }
  }
  const float *p = slope.data(), *q = constant.data();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < count; ++r) {
    const T *grad = dy + r * wide, *in = x + r * wide, *other = skip ? skip + r * wide : nullptr;
    T* __restrict to = dx + r * wide;
    for (long i = 0; i < wide; ++i) {
      float v = load(in + i), g = load(grad + i);
      g = v * s[i] + o[i] <= 0 ? 0 : g;
      float d = g * s[i] + ((v - m[i]) * p[i] + q[i]);
      store(to + i, other ? d + load(other + i) : d);
    }
  }
}
}  // namespace

#define EXPORT(T, NAME)                                                                                             \
  extern "C" void forward_##NAME(const T* x, T* y, const float* weight, const float* bias, float* running_mean,       \
                                 float* running_var, float* saved, long rows, long channels, float eps,              \
                                 float momentum, int threads) {                                                      \
    forward(x, y, weight, bias, running_mean, running_var, saved, rows, channels, eps, momentum, threads);           \
  }                                                                                                                  \
  extern "C" void evaluate_##NAME(const T* x, T* y, const float* weight, const float* bias, const float* saved,      \
                                  long rows, long channels, int threads) {                                           \
    evaluate(x, y, weight, bias, saved, rows, channels, threads);                                                    \
  }                                                                                                                  \
  extern "C" void backward_##NAME(const T* dy, const T* x, const T* skip, T* dx, const float* weight,                \
                                  const float* bias, const float* saved, float* dweight, float* dbias, long rows,    \
                                  long channels, int threads) {                                                      \
    backward(dy, x, skip, dx, weight, bias, saved, dweight, dbias, rows, channels, threads);                         \
  }
EXPORT(float, float32)
EXPORT(uint16_t, bfloat16)
