//! A wire to a host that can be cut: a relay on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Relays every connection to one address, until it is cut.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    cut: CancellationToken,
    _ends: DropGuard,
}

impl Wire {
    pub async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        Self::that_carries(address, u64::MAX).await
    }

    /// A wire that is cut when so many bytes went there.
    pub async fn that_carries(address: SocketAddr, bytes: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let cut = CancellationToken::new();
        let (ends, left) = (cut.clone(), Arc::new(AtomicU64::new(bytes)));
        tokio::spawn(async move {
            while let Some(Ok((here, _))) = ends.run_until_cancelled(listener.accept()).await {
                tokio::spawn(relay(here, address, left.clone(), ends.clone()));
            }
        });
        Ok(Self { port, _ends: cut.clone().drop_guard(), cut })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection, and lets no other begin.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

async fn relay(mut here: TcpStream, address: SocketAddr, left: Arc<AtomicU64>, cut: CancellationToken) {
    let Ok(mut there) = TcpStream::connect(address).await else { return };
    if cut.run_until_cancelled(carry(&mut here, &mut there, &left, &cut)).await.is_none() {
        // A cut is a reset, not a polite end.
        let _ = (here.set_zero_linger(), there.set_zero_linger());
    }
}

async fn carry(here: &mut TcpStream, there: &mut TcpStream, left: &AtomicU64, cut: &CancellationToken) {
    let (mut from_here, mut to_here) = here.split();
    let (mut from_there, mut to_there) = there.split();
    let forward = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = from_here.read(&mut buffer).await?;
            if count == 0 {
                return to_there.shutdown().await;
            }
            to_there.write_all(&buffer[..count]).await?;
            if left.fetch_sub(count as u64, Relaxed) <= count as u64 {
                cut.cancel();
            }
        }
    };
    let back = async {
        copy(&mut from_there, &mut to_here).await?;
        to_here.shutdown().await
    };
    let _ = tokio::try_join!(forward, back);
}
