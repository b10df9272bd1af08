//! The base image is what the issue asks for: a real root file system of at least 700 MiB on a sparse disk of 4 GiB.

use anyhow::Result;
use harness::lab::apt;
use harness::{Lab, files};

const MIB: u64 = 1 << 20;

#[test]
fn base_images_are_sparse_and_real() -> Result<()> {
    apt::setup()?;
    let lab = Lab::open()?;
    for (image, least, most, size) in [(lab.small_base()?, 64, 400, 1024), (lab.base()?, 700, 1200, 4096)] {
        let (data, whole) = (files::allocated(&image)? / MIB, std::fs::metadata(&image)?.len() / MIB);
        println!("{}: {data} MiB of data on {whole} MiB", image.display());
        assert!((least..most).contains(&data) && whole == size, "{}: {data} of {whole}", image.display());
    }
    Ok(())
}
