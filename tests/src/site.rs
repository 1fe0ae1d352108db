//! Files of a directory, served by HTTP on the far side, on every served address.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network::FAR;
use crate::wait;

const SOON: Duration = Duration::from_secs(20);

/// Ended when dropped.
#[derive(Debug)]
pub struct Site {
    server: Child,
    directory: PathBuf,
}

impl Site {
    pub const PORT: u16 = 8080;

    /// Serves this directory, empty at first; `address`: one of those that it is reached at.
    pub fn start(directory: &str, address: IpAddr) -> Result<Self> {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)?;
        let port = Self::PORT.to_string();
        let server = Command::new("ip")
            .args(["netns", "exec", FAR, "python3", "-m", "http.server", "--directory", directory, &port])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("ip netns exec")?;
        let site = Self { server, directory: directory.into() };
        wait::until("the site to be served", SOON, || Ok(TcpStream::connect((address, Self::PORT)).ok()))?;
        Ok(site)
    }

    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap_or(&self.directory))?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
