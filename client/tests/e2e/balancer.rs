//! A load balancer that a test turns.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What stands before the servers and has the address that everybody knows.
pub(crate) struct Balancer(Arc<Mutex<SocketAddr>>);

impl Balancer {
    /// Listens here, and sends everybody to this server.
    pub(crate) fn at(address: &str, server: SocketAddr) -> Self {
        let target = Arc::new(Mutex::new(server));
        let (listener, shared) = (TcpListener::bind(address).unwrap(), target.clone());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let target = *shared.lock().unwrap();
                // A server that is not there looks like one behind a balancer: the connection ends.
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    thread::spawn(move || forward(from, to));
                }
            }
        });
        Balancer(target)
    }

    /// Where new connections go from now on.
    pub(crate) fn send_to(&self, server: SocketAddr) {
        *self.0.lock().unwrap() = server;
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
