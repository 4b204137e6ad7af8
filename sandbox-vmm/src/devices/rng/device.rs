//! Fills what the guest offers, a bounded part of it.

use crate::devices::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, Progress, VirtQueue, VirtioDevice, device_id,
};

const QUEUE_SIZE: u16 = 16;
/// Bytes given for one buffer. Bounds the time the event thread spends on one guest request; Linux asks for less.
const MAX_BYTES: usize = 4096;

/// The entropy device.
#[derive(Debug, Default)]
pub struct EntropyDevice {
    running: Option<(VirtQueue, Interrupt)>,
}

impl EntropyDevice {
    /// A source of entropy.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for EntropyDevice {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        device_id::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.running = Some(activation.only_queue()?);
        Ok(())
    }

    fn notify(&mut self, _queue: u16) -> Result<Progress, GuestFault> {
        let Some((queue, interrupt)) = &mut self.running else {
            return Ok(Progress::Idle);
        };
        queue.serve(interrupt, |chain| {
            let mut bytes = [0u8; MAX_BYTES];
            let wanted = chain.writer.remaining().min(MAX_BYTES);
            let wanted = bytes.get_mut(..wanted).unwrap_or(&mut []);
            // Only fails before the host's own pool is ready, long past; an empty answer is allowed then.
            let got =
                rustix::rand::getrandom(&mut *wanted, rustix::rand::GetRandomFlags::NONBLOCK).unwrap_or(0);
            chain.writer.write(wanted.get(..got).unwrap_or(&[]))?;
            Ok(chain.written())
        })
    }

    fn reset(&mut self) {
        self.running = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::Driver;

    #[test]
    fn buffers_come_back_filled_and_different() {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        let one = driver.request(0, &[], &[64]).unwrap();
        let two = driver.request(0, &[], &[64]).unwrap();
        assert_eq!(one.len(), 64);
        assert_ne!(one, two);
    }

    #[test]
    fn a_huge_buffer_gets_a_bounded_answer() {
        let mut driver = Driver::start(Box::new(EntropyDevice::new()));
        assert_eq!(driver.request(0, &[], &[100_000]).unwrap().len(), MAX_BYTES);
    }
}
