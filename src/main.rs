//! vmsnap: see the library for everything.

fn main() {
    std::process::exit(vmsnap::cli::main(std::env::args_os()));
}
