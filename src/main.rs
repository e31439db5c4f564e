//! The entry point; the code is in the library.

fn main() {
    std::process::exit(vmsnap::cli::main(std::env::args_os()));
}
