//! Where a service listens.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::{fmt, io};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Deserializer, de};

use hitless::ListeningSocket;

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At an address.
    Tcp(SocketAddr),
    /// At a path.
    Unix(PathBuf),
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let listen = match text.parse() {
            Ok(address) => Listen::Tcp(address),
            Err(_) if text.starts_with('/') => Listen::Unix(PathBuf::from(&text)),
            Err(_) => {
                return Err(de::Error::custom(format!(
                    "\"{text}\" is neither ADDRESS:PORT, [ADDRESS]:PORT, nor a path that starts with /"
                )));
            }
        };
        match listen.obstacle() {
            None => Ok(listen),
            Some(reason) => Err(de::Error::custom(format!("\"{text}\" {reason}"))),
        }
    }
}

impl Listen {
    /// Where a socket that the service manager keeps is bound.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(socket: &ListeningSocket) -> io::Result<Self> {
        match socket {
            ListeningSocket::Tcp(socket) => socket.local_addr().map(Self::Tcp),
            ListeningSocket::Unix(socket) => {
                socket.local_addr().map(|address| Self::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
            }
        }
    }

    /// Listens there.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn bind(&self, reuse_port: bool) -> io::Result<ListeningSocket> {
        let bound = match self {
            Self::Tcp(address) => bind_tcp(*address, reuse_port).map(ListeningSocket::Tcp),
            Self::Unix(path) => bind_unix(path).map(ListeningSocket::Unix),
        };
        bound.map_err(|error| {
            let hint = match self {
                Self::Tcp(address) if error.kind() == io::ErrorKind::AddrInUse => {
                    format!(" (who has it: ss --listening --tcp --processes 'sport = :{}')", address.port())
                }
                _ => String::new(),
            };
            io::Error::new(error.kind(), format!("cannot listen on {self}: {error}{hint}"))
        })
    }

    /// Whether it is in a folder of the service `name`, where its unit lets nobody in.
    pub fn is_private_to(&self, name: &str) -> bool {
        let Self::Unix(path) = self else { return false };
        ["/run", "/var/run", "/var/lib"]
            .into_iter()
            .any(|folder| [name, "private"].into_iter().any(|owner| path.starts_with(Path::new(folder).join(owner))))
    }

    /// Why nobody could connect there, if so.
    fn obstacle(&self) -> Option<String> {
        match self {
            Listen::Tcp(address) => address.ip().is_multicast().then(|| "is no address of a host".to_owned()),
            Listen::Unix(path) => {
                let text = path.as_os_str().as_encoded_bytes();
                // What a unit can name as it is, without quotes and specifiers, and systemd does not write otherwise.
                let plain = text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte));
                let normal = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
                let same = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
                if !(plain && normal && same) || path.parent().is_none() {
                    Some("is not a plain path of letters, digits and /._-".to_owned())
                } else if text.len() > 107 {
                    Some("is longer than the 107 bytes that a socket's path may have (unix(7))".to_owned())
                } else {
                    None
                }
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => path.display().fmt(f),
        }
    }
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // Not for what a handler starts, which would keep the port.
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, reuse_port)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        // A socket that refuses was left by a process that was killed.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse
                && std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
                && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
