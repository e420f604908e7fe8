// An exponential that loops over floats can be vectorised with.
#pragma once

#include <cstdint>

// e^x to 2e-7 for |x| < 80; deviations are bounded to far less. 12582912 = 1.5 2^23 rounds x / log 2 to an integer that
// then stands in the lowest bits, from where it is moved into the exponent.
inline float exponential(float x) {
    const float shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.f);
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p) + (__builtin_bit_cast(uint32_t, shifted) << 23));
}
