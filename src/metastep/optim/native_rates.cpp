// Between the two passes, for the CPU kernel: what optim/adapt.py and core/ do with a few dozen tensor operations, over
// the rows of one group at once. The formulas are theirs; tests hold the two together.
//
// The rows of a tensor are neighbours, and so are its units where units have rates: then row and unit are one. Every
// loop below therefore runs over one tensor's rows, and the compiler can vectorise it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "native_exponential.h"

namespace {

enum Rule { EXPONENTIATED = 0, COSINE = 1, ADDITIVE = 2, LOG = 3 };
enum Combine { PROJECT = 0, SOFTMAX = 1, DIVIDE = 2, FIXED = 3 };

constexpr double NULL_DIRECTION = 1e-6;   // core/rates.py
constexpr double SMALLEST_WEIGHT = 1e-8;  // core/combination.py

// One coarser level: the whole group, its layers or its units.
struct Level {
    int64_t groups;
    int64_t by_row;         // 1 where every row is a group of its own
    const int64_t *first;   // (tensors) the group of each tensor's first row
    const double *elements; // (groups)
    float *deviation;       // (groups)
    double *alignment;      // (groups) written
    double hyper_lr;
};

struct Rates {
    int64_t rows, tensors, levels, weights;  // weights: levels, and one more with elementwise rates
    const int64_t *begin;                    // (tensors + 1) first row of each tensor
    const float *factors;                    // (tensors) schedule factor of the last update
    float *weight;                           // (weights)
    int64_t *clipped, *rejected;             // (weights)
    double initial, low, high, weight_lr;    // low, high: bounds of a deviation
    float low_rate, high_rate;
    int32_t rule, combine, scaled, mean;
};

using Vector = std::vector<double>;

// <g, u>, |g|^2, |u|^2 of the rows or of the groups of a level; in `own` where they are not those of the rows.
struct Sums {
    double *gu, *gg, *uu;
    Vector own;
    Sums(double *sums, int64_t size) : gu(sums), gg(sums + size), uu(sums + 2 * size) {}
    explicit Sums(int64_t size) : own(3 * size) { gu = own.data(), gg = gu + size, uu = gg + size; }
};

bool finite(double x) { return x - x == 0.0; }

float rate_of(const Rates &s, float deviation) {
    const float initial = static_cast<float>(s.initial);
    const float rate = s.rule == ADDITIVE ? deviation + initial : exponential(deviation) * initial;
    return rate < s.low_rate ? s.low_rate : rate > s.high_rate ? s.high_rate : rate;
}

std::vector<std::vector<float>> rates_of(const Rates &s, const Level *levels) {
    std::vector<std::vector<float>> rates;
    for (int64_t j = 0; j < s.levels; ++j) {
        const int64_t groups = levels[j].groups;
        const float *deviation = levels[j].deviation;
        float *rate = rates.emplace_back(groups).data();
#pragma omp simd
        for (int64_t k = 0; k < groups; ++k) rate[k] = rate_of(s, deviation[k]);
    }
    return rates;
}

// The weighted sum of the coarser rates in each row, without the schedule factor, added to `combined`.
template <typename Number>
void combine(const Rates &s, const Level *levels, const std::vector<std::vector<float>> &rates, Number *combined) {
    for (int64_t j = 0; j < s.levels; ++j) {
        const Number weight = s.weight[j];
        for (int64_t t = 0; t < s.tensors; ++t) {
            const float *rate = rates[j].data() + levels[j].first[t];
            const int64_t begin = s.begin[t], rows = s.begin[t + 1] - begin;
            if (levels[j].by_row)
                for (int64_t i = 0; i < rows; ++i) combined[begin + i] += weight * rate[i];
            else
                for (int64_t i = 0; i < rows; ++i) combined[begin + i] += weight * *rate;
        }
    }
}

// Brings the schedule factor into the sums of the rows: u is what a rate of 1 moved a tensor by.
void scale(const Rates &s, const Sums &rows) {
    for (int64_t t = 0; t < s.tensors; ++t) {
        const double factor = s.factors[t], square = factor * factor;
        if (factor == 1.0) continue;
        for (int64_t r = s.begin[t]; r < s.begin[t + 1]; ++r) rows.gu[r] *= factor, rows.uu[r] *= square;
    }
}

void add(const double *rows, const Rates &s, const Level &level, double *sums) {
    for (int64_t t = 0; t < s.tensors; ++t) {
        double *own = sums + level.first[t];
        const double *row = rows + s.begin[t];
        const int64_t count = s.begin[t + 1] - s.begin[t];
        if (level.by_row) {
            for (int64_t i = 0; i < count; ++i) own[i] += row[i];
        } else {
            double total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < count; ++i) total += row[i];
            *own += total;
        }
    }
}

Sums fold(const Rates &s, const Level &level, const Sums &rows) {
    if (level.by_row && level.groups == s.rows) return Sums(rows.gu, s.rows);  // no two rows share a rate
    Sums sums(level.groups);
    add(rows.gu, s, level, sums.gu), add(rows.gg, s, level, sums.gg), add(rows.uu, s, level, sums.uu);
    return sums;
}

void align(const Level &level, const Sums &sums) {
    double gradient = 0, direction = 0, elements = 0;
    const double *gu = sums.gu, *gg = sums.gg, *uu = sums.uu;
#pragma omp simd reduction(+ : gradient, direction, elements)
    for (int64_t k = 0; k < level.groups; ++k) {
        const bool kept = finite(gu[k]) && finite(gg[k]) && finite(uu[k]);
        elements += level.elements[k];
        gradient += kept ? gg[k] : 0.0;
        direction += kept ? uu[k] : 0.0;
    }
    const double noise = NULL_DIRECTION * std::sqrt(gradient) * std::sqrt(direction);
    const double share = 1.0 / std::max(elements, 1.0);
#pragma omp simd
    for (int64_t k = 0; k < level.groups; ++k) {
        const bool kept = finite(gu[k]) && finite(gg[k]) && finite(uu[k]);
        const double scale = __builtin_sqrt(gg[k]) * __builtin_sqrt(uu[k]);
        const bool null = scale <= noise * __builtin_sqrt(level.elements[k] * share);
        double cosine = gu[k] / scale;
        cosine = cosine < -1.0 ? -1.0 : cosine > 1.0 ? 1.0 : cosine;
        level.alignment[k] = !kept ? NAN : null ? 0.0 : cosine;
    }
}

// What the rule adds to the deviations of `count` groups from `begin`, see core/rates.py.
void increments(const Rates &s, const Level &level, const Sums &sums, double hyper_lr, int64_t begin, int64_t count,
                double *steps) {
    const double *cosine = level.alignment + begin, *gu = sums.gu + begin, *elements = level.elements + begin;
    if (s.rule == EXPONENTIATED) {
        for (int64_t i = 0; i < count; ++i) steps[i] = hyper_lr * cosine[i];
    } else if (s.rule == COSINE) {
        for (int64_t i = 0; i < count; ++i) steps[i] = std::log1p(hyper_lr * cosine[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) steps[i] = hyper_lr * gu[i] / (s.mean ? std::max(elements[i], 1.0) : 1.0);
        if (s.rule == LOG)
            for (int64_t i = 0; i < count; ++i) steps[i] *= rate_of(s, level.deviation[begin + i]);
    }
}

// Adds the steps to the deviations; counts those that are not finite, which are left out, and those cut at a bound.
void move(const Rates &s, const Level &level, const Sums &sums, double hyper_lr, int64_t &clipped, int64_t &rejected) {
    constexpr int64_t BLOCK = 1024;
    double steps[BLOCK];
    const float low = static_cast<float>(s.low), high = static_cast<float>(s.high);
    for (int64_t begin = 0; begin < level.groups; begin += BLOCK) {
        const int64_t count = std::min(BLOCK, level.groups - begin);
        increments(s, level, sums, hyper_lr, begin, count, steps);
        float *deviation = level.deviation + begin;
        int cut = 0, bad = 0;
#pragma omp simd reduction(+ : cut, bad)
        for (int64_t i = 0; i < count; ++i) {
            const bool good = finite(steps[i]);
            const float old = deviation[i], moved = good ? old + static_cast<float>(steps[i]) : old;
            float kept = moved < low ? low : moved;
            kept = kept > high ? high : kept;
            deviation[i] = kept;
            cut += kept != moved, bad += !good;
        }
        clipped += cut, rejected += bad;
    }
}

// Derivative of the loss with respect to each combination weight, see `weight_slopes` in adapt.py.
Vector slopes_of(const Rates &s, const Level *levels, const Sums &rows, double elementwise) {
    const auto rates = rates_of(s, levels);
    const bool fine = s.weights > s.levels;
    Vector slopes(s.weights), combined(s.rows, fine ? s.weight[s.levels] * s.initial : 0.0);
    combine(s, levels, rates, combined.data());
    for (int64_t j = 0; j < s.levels; ++j) {
        double slope = 0;
        for (int64_t t = 0; t < s.tensors; ++t) {
            const float *rate = rates[j].data() + levels[j].first[t];
            const double *gu = rows.gu + s.begin[t];
            const int64_t count = s.begin[t + 1] - s.begin[t], stride = levels[j].by_row;
#pragma omp simd reduction(- : slope)
            for (int64_t i = 0; i < count; ++i) slope -= rate[i * stride] * gu[i];
        }
        slopes[j] = slope;
    }
    if (fine) slopes[s.levels] = -elementwise;
    if (s.rule != EXPONENTIATED && s.rule != COSINE) return slopes;
    double gradient = 0, direction = 0;
#pragma omp simd reduction(+ : gradient, direction)
    for (int64_t r = 0; r < s.rows; ++r) {
        gradient += rows.gg[r];
        direction += combined[r] * combined[r] * rows.uu[r];
    }
    const double scale = std::sqrt(gradient) * std::sqrt(direction);
    for (double &slope : slopes) slope = scale > 0 ? slope / scale : 0.0;
    return slopes;
}

// Moves the combination weights against the slopes; leaves them where the result is not finite.
void learn_weights(const Rates &s, const Vector &slopes) {
    const int64_t n = s.weights;
    Vector moved(n);
    double mean = 0, total = 0, most = -INFINITY;
    if (s.combine == SOFTMAX) {
        for (int64_t j = 0; j < n; ++j) mean += s.weight[j] * slopes[j];
        for (int64_t j = 0; j < n; ++j) {
            const double weight = s.weight[j];
            moved[j] = std::log(weight) - s.weight_lr * weight * (slopes[j] - mean);
            most = std::max(most, moved[j]);
        }
        for (double &value : moved) value = std::exp(value - most);
    } else {
        for (int64_t j = 0; j < n; ++j) mean += s.combine == PROJECT ? slopes[j] / n : 0.0;
        for (int64_t j = 0; j < n; ++j) {
            const double value = s.weight[j] - s.weight_lr * (slopes[j] - mean);
            moved[j] = value < SMALLEST_WEIGHT ? SMALLEST_WEIGHT : value;  // NaN stays
        }
    }
    for (double value : moved) total += value;
    if (!finite(total)) return;
    for (int64_t j = 0; j < n; ++j) s.weight[j] = static_cast<float>(moved[j] / total);
}

double sum(const double *values, int64_t count) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) total += values[i];
    return total;
}

}  // namespace

extern "C" {

// Moves every coarser rate and the weights by one step, all from old values. sums: (3, rows), see native.cpp; (6, rows)
// with elementwise rates; they are scaled in place.
void metastep_adapt(const Rates *rates, const Level *levels, double *sums) {
    const Rates &s = *rates;
    const Sums rows(sums, s.rows);
    scale(s, rows);
    const bool fine = s.weights > s.levels, learns = s.weights > 1 && s.weight_lr > 0 && s.combine != FIXED;
    Vector slopes;
    if (learns) slopes = slopes_of(s, levels, rows, fine ? sum(sums + 3 * s.rows, s.rows) : 0.0);
    for (int64_t j = 0; j < s.levels; ++j) {
        const Sums own = fold(s, levels[j], rows);
        align(levels[j], own);
        const double hyper_lr = levels[j].hyper_lr * (s.scaled ? s.weight[j] : 1.0);
        move(s, levels[j], own, hyper_lr, s.clipped[j], s.rejected[j]);
    }
    if (fine) {
        s.clipped[s.levels] += static_cast<int64_t>(sum(sums + 4 * s.rows, s.rows));
        s.rejected[s.levels] += static_cast<int64_t>(sum(sums + 5 * s.rows, s.rows));
    }
    if (learns) learn_weights(s, slopes);
}

// combined: (rows) the weighted sum of the coarser rates, times the schedule factor.
void metastep_combine(const Rates *rates, const Level *levels, float *combined) {
    const Rates &s = *rates;
    std::fill(combined, combined + s.rows, 0.f);
    combine(s, levels, rates_of(s, levels), combined);
    for (int64_t t = 0; t < s.tensors; ++t)
        for (int64_t r = s.begin[t]; r < s.begin[t + 1]; ++r) combined[r] *= s.factors[t];
}
}
