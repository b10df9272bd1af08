//! The home agent and local mobility anchor as a running agent: what `mobility-proto` decides about bindings, with sockets,
//! a clock and a tunnel interface. Whom it serves is said by its owner through [`HomeAgent`].

use std::net::Ipv6Addr;

use mobility_proto::anchor::{self, Anchor, Authorization, AuthorizeError, Output};
use mobility_proto::inner::{Inner, end_marker};
use mobility_proto::wire::{BindingLifetime, Ipv6Prefix, TransientLifetime};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::{
    AgentError, Ends, Orders, opening, packet_of, packet_with, send_whole, sleep_until, unix_ns,
};
use crate::plane::{Plane, Side};
use crate::raw::{DESTINATION_OPTIONS, RawSocket, WHOLE_PACKETS};

/// How a home agent is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its address, for signalling and tunnels.
    pub address: Ipv6Addr,
    /// The prefixes of which mobile nodes have a part: what is for them comes to this host.
    pub prefixes: Vec<Ipv6Prefix>,
    /// The tunnel interface's name, at most 15 bytes.
    pub interface: String,
    /// How many mobile nodes it serves at most.
    pub max_nodes: usize,
    /// How often it has started.
    pub restart_counter: u32,
}

/// Where a mobile node is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The mobile node's identifier.
    pub node: String,
    /// Where it is reached.
    pub care_of: Ipv6Addr,
    /// The ownership epoch in which it is there.
    pub epoch: u64,
}

#[derive(Debug)]
enum Command {
    Authorize(Box<Authorization>, oneshot::Sender<Result<(), AuthorizeError>>),
    Withdraw(u32),
    Restore { node: String, floor: u64, active: Option<u32> },
    RestoreMobileNode { node: String, care_of: Ipv6Addr },
    Binding(String, oneshot::Sender<Option<Binding>>),
}

/// A running home agent. It ends when this is dropped, and takes its interface and routes with it.
#[derive(Debug, Clone)]
pub struct HomeAgent {
    orders: Orders<Command>,
    switched: broadcast::Sender<Ipv6Prefix>,
}

impl HomeAgent {
    /// Starts it.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let Ends { links, signalling, plane, index } = Ends::open(config.address, &config.interface).await?;
        for prefix in &config.prefixes {
            links.route(*prefix, index).await?;
        }
        let anchor = Anchor::new(anchor::Config {
            address: config.address,
            max_nodes: config.max_nodes,
            max_lifetime: BindingLifetime::from_secs(600),
            max_transient: TransientLifetime::from_ms(25_500),
            restart_counter: config.restart_counter,
            started_unix_ns: unix_ns(),
        });
        let address = config.address;
        let from_nodes = RawSocket::open(DESTINATION_OPTIONS, address, 0)
            .map_err(opening("a socket for mobile nodes' signalling"))?;
        let sender = RawSocket::open(WHOLE_PACKETS, address, 0).map_err(opening("a socket to send by"))?;
        let (commands, inbox) = mpsc::channel(64);
        let (switched, _) = broadcast::channel(4096);
        let start = Instant::now();
        let told = switched.clone();
        let agent = Agent { address, anchor, signalling, from_nodes, sender, plane, switched: told, start };
        tokio::spawn(agent.run(inbox));
        Ok(Self { orders: Orders(commands), switched })
    }

    /// From now on this registrant may register this mobile node.
    ///
    /// # Errors
    /// What the anchor says, inside; [`AgentError::Ended`].
    pub async fn authorize(
        &self,
        authorization: Authorization,
    ) -> Result<Result<(), AuthorizeError>, AgentError> {
        self.orders.ask(|reply| Command::Authorize(Box::new(authorization), reply)).await
    }

    /// The key with this SPI is worth nothing from now on.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn withdraw(&self, spi: u32) -> Result<(), AgentError> {
        self.orders.tell(Command::Withdraw(spi)).await
    }

    /// What was so before a restart: epochs up to `floor` have been bound, and the binding was made with the key `active`.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn restore(&self, node: &str, floor: u64, active: Option<u32>) -> Result<(), AgentError> {
        self.orders.tell(Command::Restore { node: node.to_owned(), floor, active }).await
    }

    /// What was so before a restart: this mobile node, which registers itself, was reached there.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn restore_mobile_node(&self, node: &str, care_of: Ipv6Addr) -> Result<(), AgentError> {
        self.orders.tell(Command::RestoreMobileNode { node: node.to_owned(), care_of }).await
    }

    /// The prefixes whose bindings have changed, from now on.
    #[must_use]
    pub fn switched(&self) -> broadcast::Receiver<Ipv6Prefix> {
        self.switched.subscribe()
    }

    /// Where a mobile node is reached.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn binding(&self, node: &str) -> Result<Option<Binding>, AgentError> {
        self.orders.ask(|reply| Command::Binding(node.to_owned(), reply)).await
    }
}

struct Agent {
    address: Ipv6Addr,
    anchor: Anchor,
    signalling: RawSocket,
    /// Mobile nodes' own, with their Home Address options.
    from_nodes: RawSocket,
    sender: RawSocket,
    plane: Plane,
    switched: broadcast::Sender<Ipv6Prefix>,
    start: Instant,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let [mut buffer, mut from_nodes] = [(); 2].map(|()| vec![0; 4096]);
        loop {
            let deadline = self.anchor.deadline().map(|deadline| self.start + deadline);
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                received = self.signalling.receive(&mut buffer) => match received {
                    Ok((len, from)) => self.signalled(from, &packet_of(from, self.address, &buffer[..len])),
                    Err(error) => return tracing::error!("the home agent ends: receiving signalling: {error}"),
                },
                received = self.from_nodes.receive(&mut from_nodes) => match received {
                    Ok((len, from)) => {
                        let packet = packet_with(DESTINATION_OPTIONS, from, self.address, &from_nodes[..len]);
                        self.signalled(from, &packet);
                    }
                    Err(error) => return tracing::error!("the home agent ends: receiving signalling: {error}"),
                },
                side = self.plane.ready() => match side {
                    Ok(side) => self.pass(side).await,
                    Err(error) => return tracing::error!("the home agent ends: its tunnel interface: {error}"),
                },
                () = sleep_until(deadline) => {}
            }
            self.anchor.handle_timeout(self.start.elapsed());
            self.drain();
        }
    }

    fn signalled(&mut self, from: Ipv6Addr, packet: &[u8]) {
        if let Err(refusal) = self.anchor.handle_packet(self.start.elapsed(), unix_ns(), packet) {
            tracing::debug!("signalling from {from} was not believed: {refusal}");
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Authorize(authorization, reply) => {
                let _ = reply.send(self.anchor.authorize(*authorization));
            }
            Command::Withdraw(spi) => self.anchor.withdraw(spi),
            Command::Restore { node, floor, active } => {
                self.anchor.restore(self.start.elapsed(), node.as_bytes(), floor, active);
            }
            Command::RestoreMobileNode { node, care_of } => {
                self.anchor.restore_mobile_node(self.start.elapsed(), node.as_bytes(), care_of);
            }
            Command::Binding(node, reply) => {
                let found = self.anchor.binding(node.as_bytes());
                let _ = reply.send(found.map(|(care_of, epoch)| Binding { node, care_of, epoch }));
            }
        }
    }

    async fn pass(&mut self, side: Side) {
        match side {
            Side::Kernel(count) => {
                for packet in self.plane.taken(count) {
                    let to = Inner::parse(packet).and_then(|inner| self.anchor.care_of(inner.destination));
                    if let Some(to) = to {
                        self.plane.send(to, packet);
                    }
                }
            }
            Side::Tunnel => {
                for (from, packet) in self.plane.tunnelled() {
                    let Some(inner) = Inner::parse(&packet) else { continue };
                    if !self.anchor.accepts(inner.source, from) {
                        continue;
                    }
                    // From one mobile node to another without a way through the kernel.
                    match self.anchor.care_of(inner.destination) {
                        Some(to) => self.plane.send(to, &packet),
                        None => self.plane.deliver(packet),
                    }
                }
                self.plane.flush().await;
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.anchor.poll_output() {
            match output {
                Output::Send(packet) => send_whole(&self.sender, &packet),
                // The binding cache itself says where packets go: only the end of the old way is left to be told.
                Output::SwitchRoute { prefix, before, .. } => {
                    if let Some(before) = before {
                        self.plane.send(before, &end_marker(self.address, prefix));
                    }
                    // Nobody may be listening.
                    let _ = self.switched.send(prefix);
                }
                Output::RemoveRoute { prefix } => drop(self.switched.send(prefix)),
            }
        }
    }
}
