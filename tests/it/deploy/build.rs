//! What is looked at between `sam build` and `sam deploy`: infra/check-build, on programs of which only the beginning is there.

use std::fs::{create_dir_all, remove_file, write};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tokens_local::binaries::workspace;

/// The beginning of a program for Linux on this machine, as ELF numbers machines, that needs this version of the C library.
fn program(machine: u8, glibc: &str) -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(18, 0);
    program.extend([machine, 0]);
    program.extend(format!("\0GLIBC_2.2.5\0GLIBC_{glibc}\0").into_bytes());
    program
}

const X86_64: u8 = 62;
const ARM64: u8 = 183;

/// Whether it is content, and what it says.
fn check(at: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let ended =
        Command::new(workspace().join("infra/check-build")).args(arguments).current_dir(at).output()?;
    let said = [ended.stdout, ended.stderr].concat();
    Ok((ended.status.success(), String::from_utf8(said)?))
}

/// What `sam build` leaves in a checkout with these overrides of the template's parameters.
fn built(overrides: &str, programs: &[Vec<u8>]) -> Result<TempDir> {
    let folder = TempDir::new()?;
    std::fs::copy(workspace().join("template.yaml"), folder.path().join("template.yaml"))?;
    write(folder.path().join("samconfig.toml"), format!("parameter_overrides = [\n{overrides}\n]\n"))?;
    for (n, program) in programs.iter().enumerate() {
        let function = folder.path().join(format!(".aws-sam/build/Function{n}"));
        create_dir_all(&function)?;
        write(function.join("bootstrap"), program)?;
    }
    Ok(folder)
}

#[test]
fn a_program_for_another_machine_than_the_functions_is_not_deployed() -> Result<()> {
    let commented = "    # \"Architecture=arm64\",";
    let set = "    \"LogLevel=info\", \"Architecture=arm64\",";
    for (overrides, arguments, machine, fits) in [
        ("", &[][..], X86_64, true),
        // An ARM machine, and the default.
        ("", &[], ARM64, false),
        (commented, &[], ARM64, false),
        (set, &[], ARM64, true),
        (set, &[], X86_64, false),
        // As it is given to `sam deploy` alone.
        ("", &["arm64"], X86_64, false),
        (set, &["x86_64"], X86_64, true),
    ] {
        // The last of them is wrong.
        let others = if fits { machine } else { X86_64 + ARM64 - machine };
        let folder = built(overrides, &[program(others, "2.34"), program(machine, "2.17")])?;
        let (content, said) = check(folder.path(), arguments)?;
        assert_eq!(content, fits, "{overrides} {arguments:?} {machine}: {said}");
        assert!(fits || said.contains("Function1/bootstrap is not built for "), "{said}");
    }
    Ok(())
}

#[test]
fn what_lambda_cannot_run_is_not_deployed() -> Result<()> {
    for (program, says) in [
        (b"\xcf\xfa\xed\xfe of a Mac".to_vec(), "is not a program for Linux"),
        (vec![], "is not a program for Linux"),
        (program(X86_64, "2.39"), "needs glibc 2.39, and Lambda has 2.34"),
    ] {
        let folder = built("", &[program])?;
        let (content, said) = check(folder.path(), &[])?;
        assert!(!content && said.contains(says), "{said}");
    }
    let folder = built("", &[program(X86_64, "2.34")])?;
    remove_file(folder.path().join(".aws-sam/build/Function0/bootstrap"))?;
    assert!(check(folder.path(), &[])?.1.contains("bootstrap is missing"));
    assert!(check(built("", &[])?.path(), &[])?.1.contains("run `sam build`"));
    assert!(check(folder.path(), &["riscv64"])?.1.contains("it has to be x86_64 or arm64"));
    Ok(())
}
