// The compiled CPU engine: the two passes over float32 tensors, and the rates of a group between them.
//
// The formulas are those of optim/two_pass.py, optim/adapt.py and core/rates.py, whose constants the build passes in
// (NULL_DIRECTION and the like); tests hold the two together over every rule, level and combination. Rules and the
// like have names in Python and numbers here alone: `metastep_code` tells the number of a name.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Rule { NONE, EXPONENTIATED, COSINE, ADDITIVE, LOG };  // NONE: single elements have no rates
enum Combine { PROJECT, SOFTMAX, DIVIDE, FIXED };
enum Kind { PLAIN, MOMENTUM, NESTEROV };

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

// ---- The two passes, each reading and writing every number once.
//
// A tensor is cut into pieces: contiguous stretches of one row (see core/levels.py), short enough for sums in float32.
// Pieces are gathered into tasks of about equal size; every piece has its own place for its sums, so that the result
// does not depend on the number of threads.

constexpr int COARSE = 3, FINE = 6;  // sums: <g,u>, |g|^2, |u|^2; and <g,alpha u>, clipped, rejected

struct Table {
    int64_t tasks;
    const int64_t *begin;   // (tasks + 1) first piece of each task
    const int64_t *tensor;  // (pieces) which tensor
    const int64_t *offset;  // (pieces) where in it
    const int64_t *length;  // (pieces)
    const int64_t *row;     // (pieces)
};

struct Elementwise {
    int32_t rule;
    float step;                    // hyper-rate times the weight f
    float initial, low_rate, high_rate;
    float low, high;               // bounds of the deviation
    const float *weight;           // combination weight of the elementwise rate
    const float *factor;           // (tensors) schedule factor of the last update
};

// With what the rules that move a ratio add to a deviation for a positive and for a negative product.
struct Elements : Elementwise {
    float up, down;
    explicit Elements(const Elementwise &e)
        : Elementwise(e), up(e.rule == COSINE ? std::log1p(e.step) : e.step),
          down(e.rule == COSINE ? std::log1p(-e.step) : -e.step) {}
};

struct Tensors {
    float *const *theta;
    const float *const *gradient;
    float *const *first;     // momentum buffer, or Adam's first moment
    float *const *second;    // previous gradient, or Adam's second moment
    float *const *largest;   // AMSGrad's largest second moment
    float *const *deviation;
};

struct Settings {
    float sign, decay, judged_decay, decoupled;  // gradient: sign g + decay theta; judged: sign g + judged_decay theta
    float momentum, dampening, eps, limit;  // limit: largest rate that is applied
    double beta1, beta2;
    int64_t tensors;
    const float *counts;  // (tensors) updates so far
};

// Per tensor, what a momentum buffer takes of the gradient: all of the first, 1 - dampening of the others.
std::vector<float> shares(const Settings &s) {
    std::vector<float> result(s.tensors);
    for (int64_t k = 0; k < s.tensors; ++k) result[k] = s.counts[k] > 0.f ? 1.f - s.dampening : 1.f;
    return result;
}

// Adam's bias corrections, inverted; those of t = 1 before the first step, where the moments are zero.
struct Corrections {
    std::vector<float> first, second;
    explicit Corrections(const Settings &s) : first(s.tensors), second(s.tensors) {
        float count = -1.f;  // tensors of one age share the powers
        double one = 1.0, two = 1.0;
        for (int64_t k = 0; k < s.tensors; ++k) {
            if (s.counts[k] != count) {
                count = s.counts[k];
                const double t = count < 1.f ? 1.0 : count;
                one = 1.0 / (1.0 - std::pow(s.beta1, t)), two = 1.0 / std::sqrt(1.0 - std::pow(s.beta2, t));
            }
            first[k] = static_cast<float>(one), second[k] = static_cast<float>(two);
        }
    }
};

// Template arguments: both rules that move a ratio by the sign of the product are one loop.
constexpr int RATIO = EXPONENTIATED;

template <int rule>
inline float rate_of(float r, const Elementwise &e) {
    float a = rule == ADDITIVE ? e.initial + r : e.initial * exponential(r);
    a = a < e.low_rate ? e.low_rate : a;
    return a > e.high_rate ? e.high_rate : a;
}

// Moves one deviation; adds to the three sums that only elementwise rates have.
template <int rule>
inline void adapt(float &r, float product, float factor, const Elements &e, float &weighted, float &clipped,
                  float &rejected) {
    float dot = product * factor;
    float a = rate_of<rule>(r, e);
    weighted += a * dot;
    float d;
    if (rule == RATIO)
        d = (dot > 0.f ? e.up : 0.f) + (dot < 0.f ? e.down : 0.f) + dot * 0.f;  // the last term carries NaN
    else
        d = rule == ADDITIVE ? e.step * dot : e.step * (a * dot);
    bool bad = !(__builtin_fabsf(d) <= 3.4e38f);
    float moved = bad ? r : r + d;
    float kept = moved < e.low ? e.low : (moved > e.high ? e.high : moved);
    clipped += kept != moved ? 1.f : 0.f;
    rejected += bad ? 1.f : 0.f;
    r = kept;
}

template <typename Body>
void over_pieces(const Table &t, int threads, Body body) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < t.tasks; ++task)
        for (int64_t piece = t.begin[task]; piece < t.begin[task + 1]; ++piece) body(piece);
}

template <int rule>
void finish(double *sums, int64_t piece, float gu, float gg, float uu, float weighted, float clipped, float rejected) {
    double *out = sums + piece * (rule == NONE ? COARSE : FINE);
    out[0] = gu, out[1] = gg, out[2] = uu;
    if (rule != NONE) out[3] = weighted, out[4] = clipped, out[5] = rejected;
}

template <int kind, bool decays, int rule>
void momentum_measure(const Table &t, const Tensors &x, const Settings &s, const Elements &e, double *sums,
                      int threads) {
    const std::vector<float> taken = shares(s);
    over_pieces(t, threads, [&](int64_t piece) {
        const int64_t k = t.tensor[piece], o = t.offset[piece], n = t.length[piece];
        const float *__restrict g = x.gradient[k] + o;
        const float *__restrict theta = decays ? x.theta[k] + o : nullptr;
        float *__restrict v = kind == PLAIN ? nullptr : x.first[k] + o;
        float *__restrict last = kind == MOMENTUM ? nullptr : x.second[k] + o;
        float *__restrict r = rule == NONE ? nullptr : x.deviation[k] + o;
        const float mu = s.momentum, share = taken[k];
        const float factor = rule == NONE ? 1.f : e.factor[k];
        float gu = 0, gg = 0, uu = 0, weighted = 0, clipped = 0, rejected = 0;
#pragma omp simd reduction(+ : gu, gg, uu, weighted, clipped, rejected)
        for (int64_t i = 0; i < n; ++i) {
            float plain = s.sign * g[i], total = plain, judged = plain;
            if (decays) total = plain + s.decay * theta[i], judged = plain + s.judged_decay * theta[i];
            float u = kind == PLAIN ? last[i] : kind == MOMENTUM ? v[i] : last[i] + mu * v[i];
            float product = judged * u;
            gu += product, gg += judged * judged, uu += u * u;
            if (rule != NONE) adapt<rule>(r[i], product, factor, e, weighted, clipped, rejected);
            if (kind != PLAIN) v[i] = mu * v[i] + share * total;
            if (kind != MOMENTUM) last[i] = total;
        }
        finish<rule>(sums, piece, gu, gg, uu, weighted, clipped, rejected);
    });
}

template <int kind, int rule>
void momentum_move(const Table &t, const Tensors &x, const Settings &s, const Elements &e, const float *rates,
                   int threads) {
    const Corrections corrections(s);
    over_pieces(t, threads, [&](int64_t piece) {
        const int64_t k = t.tensor[piece], o = t.offset[piece], n = t.length[piece];
        float *__restrict theta = x.theta[k] + o;
        const float *__restrict v = kind == PLAIN ? nullptr : x.first[k] + o;
        const float *__restrict last = kind == MOMENTUM ? nullptr : x.second[k] + o;
        const float *__restrict r = rule == NONE ? nullptr : x.deviation[k] + o;
        const float coarse = rates[t.row[piece]], share = rule == NONE ? 0.f : *e.weight * e.factor[k], mu = s.momentum;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            float u = kind == PLAIN ? last[i] : kind == MOMENTUM ? v[i] : last[i] + mu * v[i];
            float a = rule == NONE ? coarse : coarse + share * rate_of<rule>(r[i], e);
            theta[i] -= a * u;
        }
    });
}

template <bool decays, bool amsgrad, int rule>
void adam_measure(const Table &t, const Tensors &x, const Settings &s, const Elements &e, double *sums,
                  int threads) {
    const Corrections corrections(s);
    over_pieces(t, threads, [&](int64_t piece) {
        const int64_t k = t.tensor[piece], o = t.offset[piece], n = t.length[piece];
        const float *__restrict g = x.gradient[k] + o;
        const float *__restrict theta = decays ? x.theta[k] + o : nullptr;
        float *__restrict m = x.first[k] + o;
        float *__restrict v = x.second[k] + o;
        float *__restrict most = amsgrad ? x.largest[k] + o : nullptr;
        float *__restrict r = rule == NONE ? nullptr : x.deviation[k] + o;
        const float c1 = corrections.first[k], c2 = corrections.second[k], factor = rule == NONE ? 1.f : e.factor[k];
        const float b1 = static_cast<float>(s.beta1), b2 = static_cast<float>(s.beta2), eps = s.eps;
        float gu = 0, gg = 0, uu = 0, weighted = 0, clipped = 0, rejected = 0;
#pragma omp simd reduction(+ : gu, gg, uu, weighted, clipped, rejected)
        for (int64_t i = 0; i < n; ++i) {
            float plain = s.sign * g[i], total = plain, judged = plain;
            if (decays) total = plain + s.decay * theta[i], judged = plain + s.judged_decay * theta[i];
            float u = (m[i] * c1) / (__builtin_sqrtf(amsgrad ? most[i] : v[i]) * c2 + eps);
            float product = judged * u;
            gu += product, gg += judged * judged, uu += u * u;
            if (rule != NONE) adapt<rule>(r[i], product, factor, e, weighted, clipped, rejected);
            m[i] += (1.f - b1) * (total - m[i]);
            float second = b2 * v[i] + (1.f - b2) * total * total;
            v[i] = second;
            if (amsgrad) most[i] = most[i] > second ? most[i] : second;
        }
        finish<rule>(sums, piece, gu, gg, uu, weighted, clipped, rejected);
    });
}

template <bool amsgrad, int rule>
void adam_move(const Table &t, const Tensors &x, const Settings &s, const Elements &e, const float *rates,
               int threads) {
    const Corrections corrections(s);
    over_pieces(t, threads, [&](int64_t piece) {
        const int64_t k = t.tensor[piece], o = t.offset[piece], n = t.length[piece];
        float *__restrict theta = x.theta[k] + o;
        const float *__restrict m = x.first[k] + o;
        const float *__restrict v = (amsgrad ? x.largest[k] : x.second[k]) + o;
        const float *__restrict r = rule == NONE ? nullptr : x.deviation[k] + o;
        const float c1 = corrections.first[k], c2 = corrections.second[k], eps = s.eps, decay = s.decoupled;
        const float limit = s.limit;
        const float coarse = rates[t.row[piece]], share = rule == NONE ? 0.f : *e.weight * e.factor[k];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            float u = (m[i] * c1) / (__builtin_sqrtf(v[i]) * c2 + eps) + decay * theta[i];
            float a = rule == NONE ? coarse : coarse + share * rate_of<rule>(r[i], e);
            a = a < limit ? a : limit;
            theta[i] -= a * u;
        }
    });
}

using Measure = void (*)(const Table &, const Tensors &, const Settings &, const Elements &, double *, int);
using Move = void (*)(const Table &, const Tensors &, const Settings &, const Elements &, const float *, int);

#define BY_RULE(function, ...)                                                                        \
    (rule == NONE       ? function<__VA_ARGS__, NONE>                                                 \
     : rule == ADDITIVE ? function<__VA_ARGS__, ADDITIVE>                                             \
     : rule == LOG      ? function<__VA_ARGS__, LOG>                                                  \
                        : function<__VA_ARGS__, RATIO>)

// ---- Between the passes: what takes optim/adapt.py a few dozen tensor operations, over the rows of one group at once.
//
// The rows of a tensor are neighbours, and so are its units where units have rates: then row and unit are one. Every
// loop below therefore runs over one tensor's rows, and the compiler can vectorise it.

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
    float *guard;                            // (3) the safeguard; null without one
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

// What the rule adds to the deviations of `count` groups from `begin`, see `increment` in core/rates.py.
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

// One step of the safeguard, see `guarded` in core/rates.py and `guard_sums` in adapt.py.
void move_guard(const Rates &s, const Level *levels, const Sums &rows, double elementwise) {
    const bool fine = s.weights > s.levels;
    Vector rates(s.rows, 0.0);
    combine(s, levels, rates_of(s, levels), rates.data());
    const double share_of_fine = fine ? s.weight[s.levels] : 0.0, start = share_of_fine * s.initial;
    double square = 0, descent = share_of_fine * elementwise, step = 0;
#pragma omp simd reduction(+ : square, descent, step)
    for (int64_t r = 0; r < s.rows; ++r) {
        const double rate = rates[r] + start;
        square += rows.gg[r], descent += rates[r] * rows.gu[r], step += rate * rate * rows.uu[r];
    }
    if (!(step > 0)) return;
    double usual = s.guard[0], cut = s.guard[1];
    const double norm = 0.5 * std::log(square);
    if (!finite(usual)) usual = norm;
    const double counted = !finite(norm) ? usual : std::min(norm, usual + std::log(LONGEST));
    const double aligned = std::min(std::max(descent / std::sqrt(square * step), -1.0), 1.0);
    const double slope = -aligned * std::exp(norm - usual);
    const bool beyond = slope > STEEPEST, longer = finite(norm) && norm > counted;
    if (beyond || longer) {
        double left = std::max(beyond ? cut * std::max(1.0 / (1.0 + slope), DEEPEST_CUT) : cut, LEAST_CUT);
        if (longer) left = std::min(left, std::max(cut * std::exp(counted - norm), DEEPEST_CUT));
        cut = left, s.guard[2] = 0.f;
    } else {
        cut = std::min(cut * (s.guard[2] > 0.f ? WARM_GROWTH : RECOVERY), 1.0);
    }
    usual = NORM_MEMORY * usual + (1.0 - NORM_MEMORY) * counted;
    s.guard[0] = static_cast<float>(usual), s.guard[1] = static_cast<float>(cut);
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

// The number that a name stands for in this file; -1 for a name that it does not know.
int metastep_code(const char *name) {
    static const struct {
        const char *name;
        int code;
    } known[] = {
        {"none", NONE},       {"exponentiated", EXPONENTIATED}, {"cosine", COSINE},     {"additive", ADDITIVE},
        {"log", LOG},         {"project", PROJECT},             {"softmax", SOFTMAX},   {"divide", DIVIDE},
        {"fixed", FIXED},     {"plain", PLAIN},                 {"momentum", MOMENTUM}, {"nesterov", NESTEROV},
    };
    for (const auto &entry : known)
        if (std::strcmp(entry.name, name) == 0) return entry.code;
    return -1;
}

// kind: PLAIN, MOMENTUM or NESTEROV; sums: (pieces, 3), (pieces, 6) with elementwise rates.
void metastep_momentum_measure(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int kind,
                               double *sums, int threads) {
    const int rule = e->rule;
    Measure f;
    if (s->decay != 0.f)
        f = kind == PLAIN      ? BY_RULE(momentum_measure, PLAIN, true)
            : kind == MOMENTUM ? BY_RULE(momentum_measure, MOMENTUM, true)
                               : BY_RULE(momentum_measure, NESTEROV, true);
    else
        f = kind == PLAIN      ? BY_RULE(momentum_measure, PLAIN, false)
            : kind == MOMENTUM ? BY_RULE(momentum_measure, MOMENTUM, false)
                               : BY_RULE(momentum_measure, NESTEROV, false);
    f(*t, *x, *s, Elements(*e), sums, threads);
}

void metastep_momentum_move(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int kind,
                            const float *rates, int threads) {
    const int rule = e->rule;
    Move f = kind == PLAIN      ? BY_RULE(momentum_move, PLAIN)
             : kind == MOMENTUM ? BY_RULE(momentum_move, MOMENTUM)
                                : BY_RULE(momentum_move, NESTEROV);
    f(*t, *x, *s, Elements(*e), rates, threads);
}

void metastep_adam_measure(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int amsgrad,
                           double *sums, int threads) {
    const int rule = e->rule;
    Measure f;
    if (s->decay != 0.f)
        f = amsgrad ? BY_RULE(adam_measure, true, true) : BY_RULE(adam_measure, true, false);
    else
        f = amsgrad ? BY_RULE(adam_measure, false, true) : BY_RULE(adam_measure, false, false);
    f(*t, *x, *s, Elements(*e), sums, threads);
}

void metastep_adam_move(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int amsgrad,
                        const float *rates, int threads) {
    const int rule = e->rule;
    Move f = amsgrad ? BY_RULE(adam_move, true) : BY_RULE(adam_move, false);
    f(*t, *x, *s, Elements(*e), rates, threads);
}

// Adds the sums of the pieces up by row, in their order: from (pieces, width) to (width, rows).
void metastep_fold_pieces(const Table *t, int64_t pieces, int64_t rows, int64_t width, const double *sums,
                          double *by_row) {
    for (int64_t i = 0; i < width * rows; ++i) by_row[i] = 0.0;
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t j = 0; j < width; ++j) by_row[j * rows + t->row[piece]] += sums[piece * width + j];
}

// Moves every coarser rate and the weights by one step, all from old values. sums: (3, rows), see above; (6, rows)
// with elementwise rates; they are scaled in place.
void metastep_adapt(const Rates *rates, const Level *levels, double *sums) {
    const Rates &s = *rates;
    const Sums rows(sums, s.rows);
    scale(s, rows);
    const bool fine = s.weights > s.levels, learns = s.weights > 1 && s.weight_lr > 0 && s.combine != FIXED;
    const double elementwise = fine ? sum(sums + 3 * s.rows, s.rows) : 0.0;
    Vector slopes;
    if (learns) slopes = slopes_of(s, levels, rows, elementwise);
    if (s.guard) move_guard(s, levels, rows, elementwise);
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
