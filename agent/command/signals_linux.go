package command

import (
	"os"
	"syscall"
)

// systemSignals are those that only Linux has. Go leaves the first real-time signal, SIGRTMIN or 34,
// to the C library.
func systemSignals() []os.Signal {
	signals := []os.Signal{syscall.SIGSTKFLT, syscall.SIGPWR}
	for n := syscall.Signal(35); n <= 64; n++ {
		signals = append(signals, n)
	}
	return signals
}
