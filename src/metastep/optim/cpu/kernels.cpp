// The two passes over float32 tensors on the CPU, each reading and writing every number once.
//
// A tensor is cut into pieces: contiguous stretches of one row (see core/levels.py), short enough for sums in float32.
// Pieces are gathered into tasks of about equal size; every piece has its own place for its sums, so that the result
// does not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <vector>

#include "native_exponential.h"

namespace {

// How elementwise rates move; the numbers are those of native.py.
enum Rule { NONE = 0, RATIO = 1, ADDITIVE = 2, LOG = 3 };
enum Kind { PLAIN = 0, MOMENTUM = 1, NESTEROV = 2 };
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
    float up, down, step;          // ratio rules: increment for a positive and a negative product; others: beta f
    float initial, low_rate, high_rate;
    float low, high;               // bounds of the deviation
    const float *weight;           // combination weight of the elementwise rate
    const float *factor;           // (tensors) schedule factor of the last update
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
    float momentum, dampening, eps;
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

template <int rule>
inline float rate_of(float r, const Elementwise &e) {
    float a = rule == ADDITIVE ? e.initial + r : e.initial * exponential(r);
    a = a < e.low_rate ? e.low_rate : a;
    return a > e.high_rate ? e.high_rate : a;
}

// Moves one deviation; adds to the three sums that only elementwise rates have.
template <int rule>
inline void adapt(float &r, float product, float factor, const Elementwise &e, float &weighted, float &clipped,
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
void momentum_measure(const Table &t, const Tensors &x, const Settings &s, const Elementwise &e, double *sums,
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
void momentum_move(const Table &t, const Tensors &x, const Settings &s, const Elementwise &e, const float *rates,
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
void adam_measure(const Table &t, const Tensors &x, const Settings &s, const Elementwise &e, double *sums,
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
void adam_move(const Table &t, const Tensors &x, const Settings &s, const Elementwise &e, const float *rates,
               int threads) {
    const Corrections corrections(s);
    over_pieces(t, threads, [&](int64_t piece) {
        const int64_t k = t.tensor[piece], o = t.offset[piece], n = t.length[piece];
        float *__restrict theta = x.theta[k] + o;
        const float *__restrict m = x.first[k] + o;
        const float *__restrict v = (amsgrad ? x.largest[k] : x.second[k]) + o;
        const float *__restrict r = rule == NONE ? nullptr : x.deviation[k] + o;
        const float c1 = corrections.first[k], c2 = corrections.second[k], eps = s.eps, decay = s.decoupled;
        const float coarse = rates[t.row[piece]], share = rule == NONE ? 0.f : *e.weight * e.factor[k];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            float u = (m[i] * c1) / (__builtin_sqrtf(v[i]) * c2 + eps) + decay * theta[i];
            float a = rule == NONE ? coarse : coarse + share * rate_of<rule>(r[i], e);
            theta[i] -= a * u;
        }
    });
}

using Measure = void (*)(const Table &, const Tensors &, const Settings &, const Elementwise &, double *, int);
using Move = void (*)(const Table &, const Tensors &, const Settings &, const Elementwise &, const float *, int);

#define BY_RULE(function, ...)                                                                        \
    (rule == NONE       ? function<__VA_ARGS__, NONE>                                                 \
     : rule == RATIO    ? function<__VA_ARGS__, RATIO>                                                \
     : rule == ADDITIVE ? function<__VA_ARGS__, ADDITIVE>                                             \
                        : function<__VA_ARGS__, LOG>)

}  // namespace

extern "C" {

// kind: 0 plain, 1 momentum, 2 Nesterov; sums: (pieces, 3), (pieces, 6) with elementwise rates.
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
    f(*t, *x, *s, *e, sums, threads);
}

void metastep_momentum_move(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int kind,
                            const float *rates, int threads) {
    const int rule = e->rule;
    Move f = kind == PLAIN      ? BY_RULE(momentum_move, PLAIN)
             : kind == MOMENTUM ? BY_RULE(momentum_move, MOMENTUM)
                                : BY_RULE(momentum_move, NESTEROV);
    f(*t, *x, *s, *e, rates, threads);
}

void metastep_adam_measure(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int amsgrad,
                           double *sums, int threads) {
    const int rule = e->rule;
    Measure f;
    if (s->decay != 0.f)
        f = amsgrad ? BY_RULE(adam_measure, true, true) : BY_RULE(adam_measure, true, false);
    else
        f = amsgrad ? BY_RULE(adam_measure, false, true) : BY_RULE(adam_measure, false, false);
    f(*t, *x, *s, *e, sums, threads);
}

void metastep_adam_move(const Table *t, const Tensors *x, const Settings *s, const Elementwise *e, int amsgrad,
                        const float *rates, int threads) {
    const int rule = e->rule;
    Move f = amsgrad ? BY_RULE(adam_move, true) : BY_RULE(adam_move, false);
    f(*t, *x, *s, *e, rates, threads);
}

// Adds the sums of the pieces up by row, in their order: from (pieces, width) to (width, rows).
void metastep_fold_pieces(const Table *t, int64_t pieces, int64_t rows, int64_t width, const double *sums,
                          double *by_row) {
    for (int64_t i = 0; i < width * rows; ++i) by_row[i] = 0.0;
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t j = 0; j < width; ++j) by_row[j * rows + t->row[piece]] += sums[piece * width + j];
}
}
