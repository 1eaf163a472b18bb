// Runs a program of the kernels that another process has written down, on this processor: replay PROGRAM OUT
//
// PROGRAM: the number of tensors, and of each its address there, its bytes' number and its bytes; the operations; the calls:
// for each the number of rows, tokens, positions, and addresses of the tensors of the state; the logits' address and size.
// OUT: the logits of the rows of each call. Addresses mean those of the process that wrote; all numbers have 64 bits.

#include "decoding.cpp"

#include <fstream>
#include <map>

int main(int, char** names) {
    std::ifstream in(names[1], std::ios::binary);
    std::ofstream out(names[2], std::ios::binary);
    auto number = [&] {
        int64_t value = 0;
        in.read(reinterpret_cast<char*>(&value), sizeof value);
        return value;
    };
    auto numbers = [&](int64_t count) {
        std::vector<int64_t> values(count);
        for (int64_t& value : values) value = number();
        return values;
    };
    std::map<int64_t, std::vector<char>> tensors;
    for (int64_t left = number(); left > 0; --left) {
        int64_t address = number();
        std::vector<char>& bytes = tensors[address];
        bytes.resize(number());
        in.read(bytes.data(), bytes.size());
    }
    auto here = [&](int64_t address) -> void* {
        if (address == 0) return nullptr;
        auto tensor = std::prev(tensors.upper_bound(address));
        return tensor->second.data() + (address - tensor->first);
    };
    std::vector<Op> ops(number());
    in.read(reinterpret_cast<char*>(ops.data()), ops.size() * sizeof(Op));
    for (Op& op : ops)
        for (void** place : {&op.in, &op.out, &op.weight, &op.extra[0], &op.extra[1], &op.extra[2], &op.extra[3]})
            *place = here(reinterpret_cast<int64_t>(*place));
    std::vector<void*> state;
    for (int64_t address : numbers(number())) state.push_back(here(address));
    const float* logits = static_cast<const float*>(here(number()));
    int64_t vocabulary = number();
    for (int64_t left = number(); left > 0; --left) {
        int64_t count = number();
        std::vector<int64_t> tokens = numbers(count), positions = numbers(count), adapters(count, -1);
        std::vector<void* const*> states(count, state.data());
        Rows rows = {count, tokens.data(), positions.data(), adapters.data(), states.data()};
        run(ops.data(), ops.size(), &rows, 1);
        out.write(reinterpret_cast<const char*>(logits), count * vocabulary * sizeof(float));
    }
    return !in || !out.flush();
}
