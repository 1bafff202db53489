//! A client's way to the server that can be cut: the connections that go through it break, and no new one comes through.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// A forwarded port. `None` in it: it has been cut.
pub(crate) struct Wire {
    /// What to connect to.
    pub(crate) url: String,
    ends: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Wire {
    /// Leads to this address.
    pub(crate) fn to(address: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ends = Arc::new(Mutex::new(Some(Vec::new())));
        let shared = ends.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Some(ends) = &mut *shared.lock().unwrap() else { return };
                let far = TcpStream::connect(&address).unwrap();
                ends.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    thread::spawn(move || forward(from, to));
                }
            }
        });
        Wire { url, ends }
    }

    /// Cuts it for good.
    pub(crate) fn cut(&self) {
        for end in self.ends.lock().unwrap().take().expect("it is cut once") {
            // One that has ended before is no less cut.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
