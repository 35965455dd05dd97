fn main() {
    keeperd::guard::main_if_guard(|_| 0);
}
