// The memory layer of MM-Rec in training and prefill: convolution, gated delta rule, norm and output gate in one pass over
// memory, forward and backward. models/memory_kernel.py says what is computed; models/mmrec/ has the slow form.
//
// Each task is one memory of one sequence: its chunks are read one after the other (backwards in the backward pass), and all
// that lies between the projections stays in the cache of the processor's core. Everything is computed in float32. Sums have
// one order, so results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "vectors.h"

namespace {

// B sequences, T tokens, M memories, K key size, V value size, C tokens in a chunk, N chunks, W taps;
// P = M (2K + V) features: the queries of all memories, the keys, the values.
struct Shape {
    int64_t batch, length, memories, key, value, chunk, taps;
    float norm_eps;
    int64_t channels() const { return memories * (2 * key + value); }
    int64_t chunks() const { return (length + chunk - 1) / chunk; }
};

struct Arrays {
    const void* features[3];   // queries and keys (B, T, M·K), values (B, T, M·V), dtype
    const void* gate;          // (B, T, M·V), dtype
    const float* write;        // β (B, T, M)
    const float* log_decay;    // (B, T, M)
    const int64_t* positions;  // (B, T)
    const float* conv_weight;  // (W, P)
    const float* norm_weight;  // (V)
    const void* history;       // (B, W−1, P), dtype; null: nothing was read before
    const float* state;        // (B, M, K, V); null: empty
    void* out;                 // (B, T, M·V), dtype
    float* last_state;         // (B, M, K, V)
    float* states;             // (B, M, N, K, V) before each chunk; null: not kept
    // the backward pass
    const void* out_grad;            // as out
    const float* last_state_grad;    // as last_state; null: zero
    void* feature_grads[3];          // as features
    void* gate_grad;                 // as gate
    float* write_grad;               // as write
    float* log_decay_grad;           // as log_decay
    float* conv_weight_grad;         // (B, W, P): of each sequence
    float* norm_weight_grad;         // (B, M, V): of each sequence and memory
    void* history_grad;              // as history; null: not wanted
    float* state_grad;               // as state
};

constexpr int MAX_CHUNK = 256, MAX_TAPS = 8;
// A tile of a product has so many rows of two vectors: their sums, the two vectors and a factor fill the registers, and
// broadcasting a factor costs less than loading more vectors would.
constexpr int TILE_ROWS = SUMS / 2, TILE_VECTORS = 2;

// A matrix by its strides: element (i, j) is data[i * row + j * column].
struct View {
    const float* data;
    int64_t row, column;
};

enum Range { ALL, UP_TO_ROW, FROM_ROW };  // which p of row i: all, p <= i, p >= i (to the tile)
enum Mode { SET, ADD };

// What is done with the sums of a tile before they are stored: nothing.
constexpr auto as_it_is = [](auto&) {};

template <int R, int NV, typename Finish = decltype(as_it_is)>
inline void tile(
    View a, const float* b, int64_t b_row, int64_t first, int64_t last, float* c, int64_t c_row, Mode mode,
    const Finish& finish = as_it_is) {
    Floats sums[R][NV];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < NV; ++n) sums[r][n] = mode == ADD ? load(c + r * c_row + n * LANES) : Floats{};
    const float* from = b + first * b_row;
    const float* left = a.data + first * a.column;
    for (int64_t p = first; p < last; ++p, from += b_row, left += a.column) {
        Floats row[NV];
        for (int n = 0; n < NV; ++n) row[n] = load(from + n * LANES);
        for (int r = 0; r < R; ++r) {
            const Floats one = splat(left[r * a.row]);
            for (int n = 0; n < NV; ++n) sums[r][n] += one * row[n];
        }
    }
    finish(sums);
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < NV; ++n) store(sums[r][n], c + r * c_row + n * LANES);
}

// c (rows, columns) = or += a (rows, inner) · b (inner, columns), where `range` says which inner elements of a row are not
// zero, and with `lower` only columns up to the row are wanted (to the vector). rows % TILE_ROWS = columns % LANES = 0.
inline void multiply(
    View a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t inner, int64_t columns, Mode mode,
    Range range = ALL, bool lower = false) {
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        const int64_t first = range == FROM_ROW ? i : 0;
        const int64_t last = range == UP_TO_ROW ? std::min(inner, i + TILE_ROWS) : inner;
        const int64_t vectors = lower ? std::min(columns, i + TILE_ROWS + LANES - 1) / LANES : columns / LANES;
        const View part{a.data + i * a.row, a.row, a.column};
        float* to = c + i * c_row;
        int64_t n = 0;
        for (; n + TILE_VECTORS <= vectors; n += TILE_VECTORS)
            tile<TILE_ROWS, TILE_VECTORS>(part, b + n * LANES, b_row, first, last, to + n * LANES, c_row, mode);
        for (; n < vectors; ++n)
            tile<TILE_ROWS, 1>(part, b + n * LANES, b_row, first, last, to + n * LANES, c_row, mode);
    }
}

// One step of transposing LANES x LANES: of two rows, elements whose index has the bit `step` change places.
template <int step, int... j>
inline void exchange(Floats& a, Floats& b, std::integer_sequence<int, j...>) {
    const Floats first = __builtin_shufflevector(a, b, (j & step ? LANES + j - step : j)...);
    b = __builtin_shufflevector(a, b, (j & step ? LANES + j : j + step)...);
    a = first;
}
template <int step>
inline void exchange_all(Floats (&rows)[LANES]) {
    for (int i = 0; i < LANES; ++i)
        if (!(i & step)) exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, LANES>());
    if constexpr (2 * step < LANES) exchange_all<2 * step>(rows);
}
// to (columns, rows) = from (rows, columns) transposed; both are multiples of LANES.
inline void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
    for (int64_t i = 0; i < rows; i += LANES)
        for (int64_t j = 0; j < columns; j += LANES) {
            Floats block[LANES];
            for (int r = 0; r < LANES; ++r) block[r] = load(from + (i + r) * columns + j);
            exchange_all<1>(block);
            for (int r = 0; r < LANES; ++r) store(block[r], to + (j + r) * rows + i);
        }
}

inline float dot(const float* a, const float* b, int64_t size) {
    Floats total{};
    for (int64_t i = 0; i < size; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}
// to = factor · from
inline void scale(float factor, const float* from, float* to, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) store(load(from + i) * factor, to + i);
}
// to[i] = the product of row i of a with row i of b, both (rows, size). rows % 4 = 0.
inline void row_dots(const float* a, const float* b, int64_t rows, int64_t size, float* to) {
    for (int64_t i = 0; i < rows; i += 4) {
        Floats totals[4] = {};
        for (int r = 0; r < 4; ++r)
            for (int64_t at = (i + r) * size; at < (i + r + 1) * size; at += LANES) totals[r] += load(a + at) * load(b + at);
        float found[4];
        sum(totals, found);
        std::copy_n(found, 4, to + i);
    }
}
// 1 / root mean square of each row, as the norm divides.
inline void inverse_root_mean_squares(const float* x, int64_t rows, int64_t size, float eps, float* to) {
    row_dots(x, x, rows, size, to);
    for (int64_t i = 0; i < rows; ++i) to[i] = 1 / std::sqrt(to[i] / float(size) + eps);
}
// silu, and its slope.
inline Floats silu(Floats x, Floats& slope) {
    const Floats share = sigmoid(x), active = x * share;
    slope = share + active * (1.0f - share);
    return active;
}

// Solve (I − A) X = X in place, A strictly lower (C, C) by its strides, X (C, width); with `backwards` (I − Aᵀ) given as the
// view of Aᵀ, which is strictly upper.
template <bool backwards>
inline void solve(View a, float* x, int64_t chunk, int64_t width) {
    for (int64_t done = 0; done < chunk; done += TILE_ROWS) {
        const int64_t i = backwards ? chunk - TILE_ROWS - done : done;
        const int64_t first = backwards ? i + TILE_ROWS : 0;
        const View before{a.data + i * a.row, a.row, a.column};
        const float* corner = a.data + i * (a.row + a.column);
        // Within the tile each row that is known is added to those that wait for it.
        const auto finish = [&](auto& rows) {
            for (int known = 0; known < TILE_ROWS; ++known)
                for (int later = known + 1; later < TILE_ROWS; ++later) {
                    const int from = backwards ? TILE_ROWS - 1 - known : known, to = backwards ? TILE_ROWS - 1 - later : later;
                    const Floats factor = splat(corner[to * a.row + from * a.column]);
                    for (size_t n = 0; n < std::size(rows[0]); ++n) rows[to][n] += rows[from][n] * factor;
                }
        };
        int64_t n = 0;
        for (; n + TILE_VECTORS * LANES <= width; n += TILE_VECTORS * LANES)
            tile<TILE_ROWS, TILE_VECTORS>(before, x + n, width, first, first + done, x + i * width + n, width, ADD, finish);
        for (; n < width; n += LANES)
            tile<TILE_ROWS, 1>(before, x + n, width, first, first + done, x + i * width + n, width, ADD, finish);
    }
}

// Ask for what will be needed, into the second cache: the first has no room for it. Rows of tokens lie too far from each other
// for the processor to guess; and asking little by little matters, because it can wait for few at once. An address outside
// of an array does no harm.
// Inlined by force: GCC drops calls of a function that does nothing else.
template <typename Data>
[[gnu::always_inline]] inline void prefetch(const Data* from, int64_t size) {
    for (int64_t n = 0; n < size; n += 64 / int64_t(sizeof(Data))) __builtin_prefetch(from + n, 0, 2);
}

// What a thread keeps beside the arrays, for one task after the other.
struct Scratch {
    std::unique_ptr<float[]> memory;
    float* next;
    explicit Scratch(int64_t size) : memory(new float[size + 16]) { reset(); }
    void reset() {
        auto address = reinterpret_cast<uintptr_t>(memory.get());
        next = reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
    }
    float* take(int64_t size) {
        float* found = next;
        next += (size + 15) / 16 * 16;
        return found;
    }
};

// The part of the projected features that a memory reads: queries, keys or values.
struct Segment {
    int64_t size, column, width;  // its features begin at `column` of so many in all memories
    int64_t channel;              // and at this one of those of the convolution
    bool normalised;
};

int64_t chunk_floats(const Shape& s) {
    return 5 * s.chunk * s.key + 2 * s.chunk * s.value + 4 * s.chunk * s.chunk + 7 * s.chunk + 18 * 16;
}

// What is known of a chunk, forward and backward.
template <typename Data>
struct Chunk {
    const Shape& shape;
    const Arrays& arrays;
    const int64_t row, memory;  // of the batch; which memory
    const int64_t C, K, V, P;
    Segment segments[3];
    int64_t start = 0, count = 0;  // tokens
    float *q, *k, *v;              // (C, K), (C, K), (C, V)
    float* shares[2];              // 1 / the lengths of q and k before they were normalised (C)
    float* norm_shares;            // 1 / root mean square of what is read (C)
    float *keys_transposed, *decay, *overlap, *scores, *erase;  // Kᵀ (K, C); D, k·k D, q·k D, −β k·k D (C, C)
    float *cumulative, *from_state, *to_state, *beta;  // (C)
    float carried = 1;
    float* slopes[3];  // of the activations of queries, keys and values
    int64_t seen[MAX_CHUNK];
    int taps[MAX_CHUNK];  // of the convolution that a token sees

    Chunk(const Shape& s, const Arrays& a, int64_t task, Scratch& scratch)
        : shape(s), arrays(a), row(task / s.memories), memory(task % s.memories), C(s.chunk), K(s.key), V(s.value),
          P(s.channels()) {
        const int64_t keys = s.memories * K, values = s.memories * V;
        segments[0] = {K, memory * K, keys, memory * K, true};
        segments[1] = {K, memory * K, keys, keys + memory * K, true};
        segments[2] = {V, memory * V, values, 2 * keys + memory * V, false};
        for (float** each : {&q, &k, &keys_transposed}) *each = scratch.take(C * K);
        v = scratch.take(C * V);
        for (float** each : {&slopes[0], &slopes[1]}) *each = scratch.take(C * K);
        slopes[2] = scratch.take(C * V);
        for (float** each : {&decay, &overlap, &scores, &erase}) *each = scratch.take(C * C);
        for (float** each : {&cumulative, &from_state, &to_state, &beta, &shares[0], &shares[1], &norm_shares}) *each = scratch.take(C);
    }

    // The number of what is the memory's own at token t of the row: (B, T, M) flattened.
    int64_t place(int64_t t) const { return (row * shape.length + t) * shape.memories + memory; }

    // A segment's features of token t of the row, also of one before it; null where nobody read that.
    const Data* features(int which, int64_t t) const {
        const Segment& segment = segments[which];
        if (t >= 0)
            return static_cast<const Data*>(arrays.features[which]) + (row * shape.length + t) * segment.width + segment.column;
        if (!arrays.history) return nullptr;
        return static_cast<const Data*>(arrays.history) + (row * (shape.taps - 1) + shape.taps - 1 + t) * P + segment.channel;
    }

    // The weights of the tap `back` tokens before, and their gradients.
    const float* conv_weight(int which, int64_t back) const {
        return arrays.conv_weight + (shape.taps - 1 - back) * P + segments[which].channel;
    }
    float* conv_weight_grad(int which, int64_t back) const {
        return arrays.conv_weight_grad + (row * shape.taps + shape.taps - 1 - back) * P + segments[which].channel;
    }

    // How many tokens token t sees through the convolution, itself among them.
    int taps_of(int64_t t, int64_t position) const {
        const int64_t there = arrays.history ? shape.taps : t + 1;
        return int(std::min({shape.taps, position + 1, there}));
    }

    // The convolution and the activation of a segment, and the slope of the latter in the backward pass. The outer loop is over
    // vectors of features: so the tokens that the convolution sees stay in registers from one token to the next.
    // TAPS: their number where it is known in advance, else 0.
    template <int TAPS>
    void mix(int which, int64_t ahead, float* to) const {
        constexpr int ROOM = TAPS ? TAPS : MAX_TAPS;
        const Segment& segment = segments[which];
        const int64_t size = segment.size, width = segment.width, all = TAPS ? TAPS : shape.taps;
        const Data* own = features(which, start);
        float* slope = arrays.out_grad ? slopes[which] : nullptr;
        for (int64_t n = 0; n < size; n += LANES) {
            Floats weights[ROOM], before[ROOM];  // of each tap; the token so many places before
            for (int64_t back = 0; back < all; ++back) {
                const Data* row = features(which, start - back);
                weights[back] = load(conv_weight(which, back) + n);
                before[back] = row ? load(row + n) : Floats{};
            }
            for (int64_t i = 0; i < count; ++i) {
                before[0] = load(own + i * width + n);
                prefetch(own + (i + ahead) * width + n, LANES);
                Floats total = before[0] * weights[0], steepness;
                for (int64_t back = 1; back < all; ++back)
                    if (back < taps[i]) total += before[back] * weights[back];
                for (int64_t back = all - 1; back > 0; --back) before[back] = before[back - 1];
                store(silu(total, steepness), to + i * size + n);
                if (slope) store(steepness, slope + i * size + n);
            }
        }
    }

    void read_segment(int which, int64_t ahead, float* to) {
        const Segment& segment = segments[which];
        const int64_t size = segment.size;
        if (shape.taps == 4) mix<4>(which, ahead, to);
        else mix<0>(which, ahead, to);
        std::fill(to + count * size, to + C * size, 0.0f);
        if (!segment.normalised) return;
        float* share = shares[which];
        row_dots(to, to, C, size, share);
        for (int64_t i = 0; i < C; ++i) share[i] = 1 / std::max(std::sqrt(share[i]), 1e-12f);
        for (int64_t i = 0; i < C; ++i) scale(share[i], to + i * size, to + i * size, size);
    }

    // Back through normalising, the activation and the convolution of a segment, whose features are `units` now: gradients of
    // what was read, and of the weights. `along`: the products of gradients and units. `seeing`: how many tokens see each.
    // `later`: the gradients before the activation of the W − 1 tokens after the chunk, then of its own first ones.
    template <int TAPS>
    void mix_back(int which, const float* grads, const float* units, const float* along, const int* seeing, float* later) const {
        constexpr int ROOM = TAPS ? TAPS : MAX_TAPS;
        const Segment& segment = segments[which];
        const int64_t size = segment.size, width = segment.width, all = TAPS ? TAPS : shape.taps;
        const Data* own = features(which, start);
        Data* to = static_cast<Data*>(arrays.feature_grads[which]) + (row * shape.length + start) * width + segment.column;
        for (int64_t n = 0; n < size; n += LANES) {
            Floats weights[ROOM], weight_grads[ROOM] = {}, after[ROOM];  // the token so many places after
            for (int64_t back = 0; back < all; ++back) {
                weights[back] = load(conv_weight(which, back) + n);
                if (back) after[back] = load(later + (back - 1) * size + n);
            }
            for (int64_t i = count - 1; i >= 0; --i) {
                const int64_t at = i * size + n;
                Floats grad = load(grads + at);
                if (segment.normalised) grad = (grad - load(units + at) * along[i]) * shares[which][i];
                after[0] = grad * load(slopes[which] + at);
                const Floats feature = load(own + i * width + n);
                Floats total = after[0] * weights[0];
                weight_grads[0] += after[0] * feature;
                for (int64_t back = 1; back < all; ++back)
                    if (back < seeing[i]) {
                        total += after[back] * weights[back];
                        weight_grads[back] += after[back] * feature;
                    }
                for (int64_t back = all - 1; back > 0; --back) after[back] = after[back - 1];
                store(total, to + i * width + n);
            }
            for (int64_t back = 0; back < all; ++back) {
                float* sum = conv_weight_grad(which, back) + n;
                store(load(sum) + weight_grads[back], sum);
                if (back) store(after[back], later + (back - 1) * size + n);
            }
        }
    }

    // `ahead`: from here to the chunk that is read after it, in tokens.
    void read(int64_t first, int64_t ahead) {
        start = first;
        count = std::min(C, shape.length - first);
        float total = 0;
        const int64_t* positions = arrays.positions + row * shape.length + first;
        for (int64_t i = 0; i < C; ++i) {
            const bool there = i < count;
            seen[i] = there ? positions[i] : seen[i - 1] + 1;
            total += there ? arrays.log_decay[place(first + i)] : 0;
            beta[i] = there ? arrays.write[place(first + i)] : 0;
            cumulative[i] = total;
            taps[i] = there ? taps_of(first + i, seen[i]) : 0;
        }
        float* active[3] = {q, k, v};
        for (int s = 0; s < 3; ++s) read_segment(s, ahead, active[s]);
        for (int64_t i = 0; i < C; i += LANES) store(exponential(load(cumulative + i)), from_state + i);
        for (int64_t i = 0; i < C; ++i)
            if (seen[i] <= i) from_state[i] = 0;
        carried = from_state[C - 1];
        for (int64_t i = 0; i < C; ++i) {
            // Token i sees j from its document's first token on; what is not seen is made 0 before it is used.
            const int64_t first_seen = std::max<int64_t>(0, i - seen[i]);
            float* to = decay + i * C;
            const Floats own = splat(cumulative[i]);
            for (int64_t j = 0; j < C; j += LANES) {
                if (j > i) store(Floats{}, to + j);
                else store(exponential(own - load(cumulative + j)), to + j);
            }
            std::fill(to, to + first_seen, 0.0f);
            std::fill(to + i + 1, to + C, 0.0f);
            to[i] = 1;
        }
        std::copy_n(decay + (C - 1) * C, C, to_state);
        transpose(k, C, K, keys_transposed);
        multiply({q, K, 1}, keys_transposed, C, scores, C, C, K, C, SET, ALL, true);
        multiply({k, K, 1}, keys_transposed, C, overlap, C, C, K, C, SET, ALL, true);
        for (int64_t i = 0; i < C; ++i) {
            for (int64_t j = 0; j < C; j += LANES) {
                const int64_t at = i * C + j;
                if (j > i) {
                    for (float* each : {scores, overlap, erase}) store(Floats{}, each + at);
                    continue;
                }
                const Floats seen_share = load(decay + at), both = load(overlap + at) * seen_share;
                store(load(scores + at) * seen_share, scores + at);
                store(both, overlap + at);
                store(-both * beta[i], erase + at);
            }
            overlap[i * C + i] = erase[i * C + i] = 0;
        }
    }

    // What the chunk erases, writes and reads, given the state before it: k S, U and Y, each (C, V).
    void recur(const float* state, float* erased, float* written, float* reads) const {
        multiply({k, K, 1}, state, V, erased, V, C, K, V, SET);
        multiply({q, K, 1}, state, V, reads, V, C, K, V, SET);
        for (int64_t i = 0; i < C; ++i) {
            const float share = from_state[i];
            for (int64_t j = i * V; j < (i + 1) * V; j += LANES) {
                store((load(v + j) - load(erased + j) * share) * beta[i], written + j);
                store(load(reads + j) * share, reads + j);
            }
        }
        solve<false>({erase, C, 1}, written, C, V);
        multiply({scores, C, 1}, written, V, reads, V, C, C, V, ADD, UP_TO_ROW);
    }
};

int64_t forward_floats(const Shape& s) { return chunk_floats(s) + s.key * s.value + 3 * s.chunk * s.value + 4 * 16; }

template <typename Data>
void forward(const Shape& shape, const Arrays& arrays, int64_t task, Scratch& scratch) {
    const int64_t C = shape.chunk, K = shape.key, V = shape.value;
    Chunk<Data> chunk(shape, arrays, task, scratch);
    float *state = scratch.take(K * V), *read = scratch.take(C * V), *written = scratch.take(C * V), *late = scratch.take(C * V);
    if (arrays.state) std::copy_n(arrays.state + task * K * V, K * V, state);
    else std::fill_n(state, K * V, 0.0f);
    for (int64_t n = 0; n < shape.chunks(); ++n) {
        chunk.read(n * C, C);
        float* kept = arrays.states ? arrays.states + (task * shape.chunks() + n) * K * V : nullptr;
        if (kept) std::copy_n(state, K * V, kept);
        chunk.recur(state, late, written, read);
        for (int64_t i = 0; i < C; ++i) scale(chunk.to_state[i], written + i * V, late + i * V, V);
        scale(chunk.carried, state, state, K * V);
        multiply({chunk.k, 1, K}, late, V, state, V, K, C, V, ADD);
        inverse_root_mean_squares(read, C, V, shape.norm_eps, chunk.norm_shares);
        for (int64_t i = 0; i < chunk.count; ++i) {
            const int64_t at = chunk.place(chunk.start + i) * V;
            const Data* gate = static_cast<const Data*>(arrays.gate) + at;
            Data* out = static_cast<Data*>(arrays.out) + at;
            prefetch(gate + C * shape.memories * V, V);
            if (kept) prefetch(kept + K * V + i * (K * V / C), K * V / C);
            const Floats share = splat(chunk.norm_shares[i]);
            for (int64_t j = 0; j < V; j += LANES)
                store(load(read + i * V + j) * share * load(arrays.norm_weight + j) * silu(load(gate + j)), out + j);
        }
    }
    std::copy_n(state, K * V, arrays.last_state + task * K * V);
}

int64_t backward_floats(const Shape& s) {
    const int64_t widest = std::max(s.key, s.value);
    return chunk_floats(s) + 8 * s.chunk * s.value + 3 * s.chunk * s.key + 3 * s.key * s.value + 2 * s.chunk * s.chunk +
           3 * s.chunk + s.value + 3 * s.taps * widest + 23 * 16;
}

template <typename Data>
void backward(const Shape& shape, const Arrays& arrays, int64_t task, Scratch& scratch) {
    const int64_t C = shape.chunk, K = shape.key, V = shape.value, taps = shape.taps;
    const int64_t widest = std::max(K, V);
    Chunk<Data> chunk(shape, arrays, task, scratch);
    float *y_grad = scratch.take(C * V), *u_grad = scratch.take(C * V), *seen_y_grad = scratch.take(C * V);
    float *erased = scratch.take(C * V), *erased_grad = scratch.take(C * V);
    float *written = scratch.take(C * V), *reads = scratch.take(C * V);
    float *q_grad = scratch.take(C * K), *k_grad = scratch.take(C * K), *late_keys = scratch.take(C * K);
    float *state_grad = scratch.take(K * V), *state_grad_t = scratch.take(K * V), *state_t = scratch.take(K * V);
    float *scores_grad = scratch.take(C * C), *erase_grad = scratch.take(C * C), *written_t = scratch.take(V * C);
    float *sums = scratch.take(C), *beta_grad = scratch.take(C), *cumulative_grad = scratch.take(C);
    float* norm_grad = scratch.take(V);
    float* later[3];  // gradients before the activation: those of the first tokens of the next chunk
    for (float*& each : later) {
        each = scratch.take(taps * widest);
        std::fill_n(each, taps * widest, 0.0f);
    }
    float* v_grad = u_grad;
    std::fill_n(norm_grad, V, 0.0f);
    if (arrays.last_state_grad) std::copy_n(arrays.last_state_grad + task * K * V, K * V, state_grad);
    else std::fill_n(state_grad, K * V, 0.0f);
    int next_taps[MAX_TAPS] = {};  // of the first tokens of the chunk that comes after

    for (int64_t n = shape.chunks() - 1; n >= 0; --n) {
        chunk.read(n * C, -C);
        const float* state = arrays.states + (task * shape.chunks() + n) * K * V;
        chunk.recur(state, erased, written, reads);
        // The output gate and the norm.
        inverse_root_mean_squares(reads, C, V, shape.norm_eps, chunk.norm_shares);
        std::fill_n(y_grad + chunk.count * V, (C - chunk.count) * V, 0.0f);
        for (int64_t i = 0; i < chunk.count; ++i) {
            const int64_t at = chunk.place(chunk.start + i) * V;
            const Data* gate = static_cast<const Data*>(arrays.gate) + at;
            const Data* out_grad = static_cast<const Data*>(arrays.out_grad) + at;
            Data* gate_grad = static_cast<Data*>(arrays.gate_grad) + at;
            const float* y = reads + i * V;
            float* to = y_grad + i * V;
            const int64_t far = C * shape.memories * V;
            prefetch(gate - far, V);
            prefetch(out_grad - far, V);
            prefetch(state - K * V + i * (K * V / C), K * V / C);
            const float share = chunk.norm_shares[i];
            Floats along = {};
            for (int64_t j = 0; j < V; j += LANES) {
                const Floats g = load(gate + j), grad = load(out_grad + j), unit = load(y + j) * share;
                Floats slope;
                const Floats weight = load(arrays.norm_weight + j), open = silu(g, slope);
                store(grad * unit * weight * slope, gate_grad + j);
                store(load(norm_grad + j) + grad * open * unit, norm_grad + j);
                const Floats inner = grad * open * weight;
                along += inner * unit;
                store(inner, to + j);
            }
            const float mean = sum(along) / float(V);
            for (int64_t j = 0; j < V; j += LANES) store((load(to + j) - load(y + j) * (share * mean)) * share, to + j);
        }
        // u_grad: of what is written, through what is read in the chunk and through the state after it.
        for (int64_t i = 0; i < C; ++i) {
            scale(chunk.to_state[i], chunk.k + i * K, late_keys + i * K, K);
            scale(chunk.from_state[i], y_grad + i * V, seen_y_grad + i * V, V);
        }
        multiply({late_keys, K, 1}, state_grad, V, u_grad, V, C, K, V, SET);
        multiply({chunk.scores, 1, C}, y_grad, V, u_grad, V, C, C, V, ADD, FROM_ROW);
        solve<true>({chunk.erase, 1, C}, u_grad, C, V);  // now the gradient of β (v − share · S k)
        transpose(written, C, V, written_t);
        multiply({y_grad, V, 1}, written_t, C, scores_grad, C, C, V, C, SET, ALL, true);
        multiply({u_grad, V, 1}, written_t, C, erase_grad, C, C, V, C, SET, ALL, true);
        transpose(state, K, V, state_t);
        transpose(state_grad, K, V, state_grad_t);
        // The states' share: what erases, what reads.
        row_dots(u_grad, erased, C, V, sums);
        row_dots(u_grad, chunk.v, C, V, beta_grad);
        for (int64_t i = 0; i < C; ++i) {
            const float of_erased = sums[i] * chunk.from_state[i];
            beta_grad[i] -= of_erased;
            cumulative_grad[i] = -chunk.beta[i] * of_erased;
            scale(-chunk.beta[i] * chunk.from_state[i], u_grad + i * V, erased_grad + i * V, V);
        }
        multiply({seen_y_grad, V, 1}, state_t, K, q_grad, K, C, V, K, SET);
        row_dots(q_grad, chunk.q, C, K, sums);
        for (int64_t i = 0; i < C; ++i) cumulative_grad[i] += sums[i];
        float last = 0;  // of the sum of all decays of the chunk
        multiply({written, V, 1}, state_grad_t, K, k_grad, K, C, V, K, SET);
        for (int64_t i = 0; i < C; ++i) scale(chunk.to_state[i], k_grad + i * K, k_grad + i * K, K);
        row_dots(k_grad, chunk.k, C, K, sums);
        for (int64_t i = 0; i < C; ++i) {
            cumulative_grad[i] -= sums[i];
            last += sums[i];
        }
        last += chunk.carried * dot(state, state_grad, K * V);
        multiply({erased_grad, V, 1}, state_t, K, k_grad, K, C, V, K, ADD);
        // Within the chunk.
        std::fill_n(sums, C, 0.0f);
        for (int64_t i = 0; i < C; ++i) {
            Floats of_scores = {}, of_erase = {};
            for (int64_t j = 0; j <= i; j += LANES) {
                const int64_t at = i * C + j;
                const Floats share = load(chunk.decay + at), to_scores = load(scores_grad + at);
                const Floats erase = -load(erase_grad + at), overlap = load(chunk.overlap + at);
                const Floats from_scores = to_scores * load(chunk.scores + at);
                const Floats from_erase = erase * overlap;
                of_scores += from_scores;
                of_erase += from_erase;
                store(load(sums + j) + from_scores + from_erase * chunk.beta[i], sums + j);
                store(to_scores * share, scores_grad + at);
                store(erase * share * chunk.beta[i], erase_grad + at);
            }
            for (int64_t j = i / LANES * LANES + LANES; j < C; j += LANES) {
                store(Floats{}, scores_grad + i * C + j);
                store(Floats{}, erase_grad + i * C + j);
            }
            erase_grad[i * C + i] = 0;
            const float of_erased = sum(of_erase);
            beta_grad[i] += of_erased;
            cumulative_grad[i] += sum(of_scores) + chunk.beta[i] * of_erased;
        }
        for (int64_t i = 0; i < C; ++i) cumulative_grad[i] -= sums[i];
        cumulative_grad[C - 1] += last;
        multiply({scores_grad, C, 1}, chunk.k, K, q_grad, K, C, C, K, ADD, UP_TO_ROW);
        multiply({scores_grad, 1, C}, chunk.q, K, k_grad, K, C, C, K, ADD, FROM_ROW);
        multiply({erase_grad, C, 1}, chunk.k, K, k_grad, K, C, C, K, ADD, UP_TO_ROW);
        multiply({erase_grad, 1, C}, chunk.k, K, k_grad, K, C, C, K, ADD, FROM_ROW);
        for (int64_t i = 0; i < C; ++i) scale(chunk.beta[i], u_grad + i * V, v_grad + i * V, V);
        // The state before the chunk.
        scale(chunk.carried, state_grad, state_grad, K * V);
        multiply({chunk.q, 1, K}, seen_y_grad, V, state_grad, V, K, C, V, ADD);
        multiply({chunk.k, 1, K}, erased_grad, V, state_grad, V, K, C, V, ADD);
        // Gates.
        float rest = 0;
        for (int64_t i = C - 1; i >= 0; --i) {
            rest += cumulative_grad[i];
            if (i >= chunk.count) continue;
            const int64_t at = chunk.place(chunk.start + i);
            arrays.log_decay_grad[at] = rest;
            arrays.write_grad[at] = beta_grad[i];
        }
        // How many tokens see each one: itself and the next ones, until a document begins.
        int seeing[MAX_CHUNK];
        for (int64_t i = 0; i < chunk.count; ++i)
            for (seeing[i] = 1; seeing[i] < taps; ++seeing[i]) {
                const int64_t later = i + seeing[i];
                if (later < chunk.count ? chunk.taps[later] <= seeing[i] : chunk.count < C || next_taps[later - C] <= seeing[i]) break;
            }
        // Normalising, the activation, the convolution.
        const float* grads[3] = {q_grad, k_grad, v_grad};
        const float* features[3] = {chunk.q, chunk.k, chunk.v};
        for (int s = 0; s < 3; ++s) {
            const Segment& segment = chunk.segments[s];
            if (segment.normalised) row_dots(grads[s], features[s], C, segment.size, sums);
            if (taps == 4) chunk.template mix_back<4>(s, grads[s], features[s], sums, seeing, later[s]);
            else chunk.template mix_back<0>(s, grads[s], features[s], sums, seeing, later[s]);
        }
        std::fill_n(next_taps, taps, 0);
        std::copy_n(chunk.taps, std::min(taps - 1, chunk.count), next_taps);
    }
    if (arrays.history_grad)
        for (int s = 0; s < 3; ++s) {
            const Segment& segment = chunk.segments[s];
            for (int64_t before = 1; before < taps; ++before) {  // so many tokens before the first one
                const Data* feature = chunk.features(s, -before);
                Data* to = static_cast<Data*>(arrays.history_grad) + (chunk.row * (taps - 1) + taps - 1 - before) * chunk.P +
                           segment.channel;
                for (int64_t j = 0; j < segment.size; j += LANES) {
                    Floats total = {};
                    for (int64_t t = 0; t + before < taps; ++t) {
                        if (next_taps[t] <= t + before) continue;
                        const Floats grad = load(later[s] + t * segment.size + j);
                        float* sum = chunk.conv_weight_grad(s, t + before) + j;
                        total += grad * load(chunk.conv_weight(s, t + before) + j);
                        store(load(sum) + grad * load(feature + j), sum);
                    }
                    store(total, to + j);
                }
            }
        }
    std::copy_n(norm_grad, V, arrays.norm_weight_grad + task * V);
    if (arrays.state_grad) std::copy_n(state_grad, K * V, arrays.state_grad + task * K * V);
}

// Do the tasks of all memories of all sequences, each by one thread.
template <typename Task>
void share_out(int64_t tasks, int threads, int64_t floats, const Task& task) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        Scratch scratch(floats);
        for (int64_t i; (i = next.fetch_add(1)) < tasks; scratch.reset()) task(i, scratch);
    };
    std::vector<std::thread> helpers;
    try {
        for (int i = 1; i < std::min<int64_t>(threads, tasks); ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads are to be had
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace

extern "C" {

void memory_forward(const Shape* shape, const Arrays* arrays, int is_bfloat16, int threads) {
    share_out(shape->batch * shape->memories, threads, forward_floats(*shape), [&](int64_t task, Scratch& scratch) {
        (is_bfloat16 ? forward<Bfloat16> : forward<float>)(*shape, *arrays, task, scratch);
    });
}

void memory_backward(const Shape* shape, const Arrays* arrays, int is_bfloat16, int threads) {
    share_out(shape->batch * shape->memories, threads, backward_floats(*shape), [&](int64_t task, Scratch& scratch) {
        (is_bfloat16 ? backward<Bfloat16> : backward<float>)(*shape, *arrays, task, scratch);
    });
}
}
