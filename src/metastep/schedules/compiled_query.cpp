// What a schedule computes in each step on the CPU: a query of an MLR-SNet, and the square of a sampled gradient.
//
// The definitions are in mlrsnet.py and calibration.py; tests hold the two together. Here they take as long as the
// numbers do, without the overhead of a dozen calls from Python.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// e^x to 4e-16 for |x| <= 80, without a branch, so that loops over it become vector code. 1.5 2^52 rounds x / log 2 to
// an integer that then stands in the lowest bits, from where it is moved into the exponent; the rest is a Taylor series.
inline double exponential(double x) {
    constexpr double round = 6755399441055744.0;
    const double shifted = x * 1.4426950408889634 + round, n = shifted - round;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return __builtin_bit_cast(double, __builtin_bit_cast(int64_t, p) + (__builtin_bit_cast(int64_t, shifted) << 52));
}

// Of twice the argument: that is how the gates come out of their matrix. Beyond +-20 it is 0 or 1 to the last bit.
inline double sigmoid_of_twice(double half) {
    const double x = std::min(std::max(half, -20.0), 20.0);
    return 1.0 / (1.0 + exponential(-2.0 * x)) + 0.0 * x;  // + 0 x: a NaN stays one
}

struct Cells {
    int64_t layers, hidden, bottleneck, inputs;  // inputs: of the first layer; the others have as many as hidden units
    const void *const *into;                     // (layers) of (2B + 1, H + I + 1), by columns
    const void *const *gates;                    // (layers) of (4H, 2B + 1), by columns
    const void *output;                          // (H)
    double bias;
};

// product (rows) = matrix (rows, columns), by columns, times vector (columns)
template <class T>
void multiply(const T *matrix, const T *vector, int64_t rows, int64_t columns, T *product) {
    std::fill(product, product + rows, T(0));
    for (int64_t j = 0; j < columns; ++j, matrix += rows) {
        const T x = vector[j];
#pragma omp simd
        for (int64_t i = 0; i < rows; ++i) product[i] += matrix[i] * x;
    }
}

template <class T>
double logit(const Cells &net, double loss, const T *state, T *next) {
    const int64_t h = net.hidden, wide = 2 * net.bottleneck + 1;
    thread_local std::vector<T> scratch;
    scratch.resize(h + std::max(h, net.inputs) + 1 + wide + 4 * h);
    T *source = scratch.data(), *narrow = source + h + std::max(h, net.inputs) + 1, *z = narrow + wide;
    const T *below = nullptr;
    for (int64_t layer = 0; layer < net.layers; ++layer, state += 2 * h, next += 2 * h) {
        const int64_t inputs = layer ? h : net.inputs;
        std::copy(state, state + h, source);
        if (layer)
            std::copy(below, below + h, source + h);
        else
            source[h] = T(loss);
        source[h + inputs] = T(1);
        multiply(static_cast<const T *>(net.into[layer]), source, wide, h + inputs + 1, narrow);
        for (int64_t i = 0; i < wide; ++i) narrow[i] = narrow[i] < T(0) ? T(0) : narrow[i];
        multiply(static_cast<const T *>(net.gates[layer]), narrow, 4 * h, wide, z);
        const T *memory = state + h;
        T *new_hidden = next, *new_memory = next + h;
#pragma omp simd
        for (int64_t i = 0; i < h; ++i) {
            const double fresh = 2.0 * sigmoid_of_twice(z[3 * h + i]) - 1.0;
            const double kept = sigmoid_of_twice(z[h + i]) * memory[i] + sigmoid_of_twice(z[i]) * fresh;
            new_memory[i] = T(kept);
            new_hidden[i] = T(sigmoid_of_twice(z[2 * h + i]) * (2.0 * sigmoid_of_twice(kept) - 1.0));
        }
        below = new_hidden;
    }
    const T *output = static_cast<const T *>(net.output);
    double sum = net.bias;
    for (int64_t i = 0; i < h; ++i) sum += static_cast<double>(output[i]) * below[i];
    return sum;
}

struct Samples {
    int64_t tensors;
    const void *const *data;   // (tensors) where their numbers begin
    const int64_t *stretches;  // (tensors) how many stretches of numbers are in the sample
    const int64_t *length;     // (tensors) of a stretch
    const int64_t *stride;     // (tensors) from one to the next
    const double *weight;      // (tensors) how many numbers each of the sample stands for
};

template <class T>
double square(const Samples &samples) {
    double total = 0.0;
    for (int64_t t = 0; t < samples.tensors; ++t) {
        const T *numbers = static_cast<const T *>(samples.data[t]);
        double sum = 0.0;
        for (int64_t k = 0; k < samples.stretches[t]; ++k, numbers += samples.stride[t]) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < samples.length[t]; ++i) sum += static_cast<double>(numbers[i]) * numbers[i];
        }
        total += samples.weight[t] * sum;
    }
    return total;
}

}  // namespace

extern "C" {
double metastep_logit_float(const Cells *net, double loss, const float *state, float *next) {
    return logit(*net, loss, state, next);
}
double metastep_logit_double(const Cells *net, double loss, const double *state, double *next) {
    return logit(*net, loss, state, next);
}
double metastep_square_float(const Samples *samples) { return square<float>(*samples); }
double metastep_square_double(const Samples *samples) { return square<double>(*samples); }
}
