fn main() -> std::process::ExitCode {
    remus::cli::main()
}
