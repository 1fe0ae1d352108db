//! A file of the system with other content for as long as a test needs it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Dropped: the file is as it was.
#[derive(Debug)]
pub struct Replaced {
    path: PathBuf,
    before: String,
}

impl Replaced {
    pub fn new(path: &str, text: &str) -> Result<Self> {
        let path = Path::new(path).to_owned();
        let before = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(Self { path, before })
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("{} stays as the test made it: {error}", self.path.display());
        }
    }
}
