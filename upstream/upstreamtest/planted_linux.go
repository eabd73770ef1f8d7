package upstreamtest

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// Planted is a random text that the memory of this process holds only where a test has put it,
// so that a test can count what is left of it.
type Planted struct {
	masked []byte // so that this is no copy of it
}

// Plant returns a new text of 32 letters and digits. The test is skipped under the race
// detector, whose own memory is too large to be searched.
func Plant(tb testing.TB) Planted {
	tb.Helper()
	if build, ok := debug.ReadBuildInfo(); ok && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		tb.Skip("searches the memory of the process")
	}
	return PlantedAs([]byte(rand.Text() + rand.Text())[:32])
}

// PlantedAs returns b as a text to count, and overwrites b.
func PlantedAs(b []byte) Planted {
	defer clear(b)
	return Planted{mask(bytes.Clone(b))}
}

func mask(b []byte) []byte {
	for i := range b {
		b[i] ^= 0xff
	}
	return b
}

// Bytes returns a copy of the text. The caller has to overwrite it.
func (p Planted) Bytes() []byte { return mask(bytes.Clone(p.masked)) }

// Count returns how often the text stands in the writable memory of this process.
func (p Planted) Count(tb testing.TB) int {
	tb.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		tb.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		tb.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	own := int64(uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	found := 0
	count := func(from, to int64) {
		for at := from; at < to; at += int64(len(buf) - len(p.masked) + 1) {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			found += bytes.Count(mask(buf[:n]), p.masked)
			if err != nil && !errors.Is(err, io.EOF) {
				break // a page that cannot be read
			}
		}
	}
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		if from <= own && own < to { // what is in buf stands elsewhere
			count(from, own)
			from = own + int64(len(buf))
		}
		count(from, to)
	}
	return found
}
