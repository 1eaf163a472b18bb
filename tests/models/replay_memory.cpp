// Runs the memory layer on arrays that another process has written down, on this processor: replay_memory IN OUT
//
// IN: 0 for a forward pass, 1 for a backward pass, 1 for bfloat16, the shape, and of each array its bytes' number (−1: null)
// and its bytes; OUT: the bytes of all arrays after it. Numbers have 64 bits.

#include "memory.cpp"

#include <fstream>

int main(int, char** names) {
    std::ifstream in(names[1], std::ios::binary);
    std::ofstream out(names[2], std::ios::binary);
    auto number = [&] {
        int64_t value = 0;
        in.read(reinterpret_cast<char*>(&value), sizeof value);
        return value;
    };
    const bool back = number(), narrow = number();
    Shape shape;
    in.read(reinterpret_cast<char*>(&shape), sizeof shape);
    Arrays arrays;
    void** places = reinterpret_cast<void**>(&arrays);
    std::vector<std::vector<char>> kept(sizeof arrays / sizeof(void*));
    for (size_t i = 0; i < kept.size(); ++i) {
        const int64_t bytes = number();
        kept[i].resize(std::max<int64_t>(bytes, 0));
        in.read(kept[i].data(), int64_t(kept[i].size()));
        places[i] = bytes < 0 ? nullptr : kept[i].data();
    }
    (back ? memory_backward : memory_forward)(&shape, &arrays, narrow, 2);
    for (const std::vector<char>& each : kept) out.write(each.data(), int64_t(each.size()));
}
