package upstream

import (
	"runtime"
	"unsafe"
)

// minErasable keeps blocks out of the allocator of tiny objects, which puts several of them
// into one block.
const minErasable = 16

// Erasable moves b into memory of its own and overwrites b. That memory is overwritten in turn
// as soon as the garbage collector finds that nothing refers to any part of it, at the latest
// with the collection that Go forces every two minutes: nobody has to know who reads last.
// The capacity of the result is what it takes in memory; nobody may append to it.
//
// It is a precaution, not a promise. Strings, stacks and the buffers of encoders and of the
// network hold copies that this does not reach, and a process that ends overwrites nothing.
func Erasable(b []byte) []byte {
	n := len(b)
	if n == 0 {
		return nil
	}
	own := append(make([]byte, 0, minErasable), b...)
	clear(b)
	// The finalizer belongs to the block, not to the slice, so parts of it may be shared freely.
	runtime.SetFinalizer(unsafe.SliceData(own), func(first *byte) {
		clear(unsafe.Slice(first, n))
	})
	return own
}
