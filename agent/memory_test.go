package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"secretagent/agent/config"
)

func TestMemoryLimit(t *testing.T) {
	const none = math.MaxInt64
	for _, test := range []struct {
		configured config.MemoryLimit
		container  uint64
		err        error
		want       int64
		log        string
	}{
		{config.MemoryAuto, 1 << 30, nil, 1<<30 - (1<<30)/10, ""},
		{config.MemoryAuto, 64 << 20, nil, 56 << 20, ""},
		{config.MemoryAuto, 8 << 20, nil, 4 << 20, ""},
		{config.MemoryAuto, 0x7ffffffffffff000, nil, none, ""}, // cgroup v1 without a limit
		{config.MemoryAuto, 0, memlimit.ErrNoLimit, none, ""},
		{config.MemoryAuto, 0, memlimit.ErrNoCgroup, none, ""},
		{config.MemoryAuto, 0, memlimit.ErrCgroupsNotSupported, none, ""},
		{config.MemoryAuto, 0, errors.New("broken"), none, "cannot be read"},
		{config.MemoryUnlimited, 64 << 20, nil, none, ""},
		{100 << 20, 64 << 20, nil, 100 << 20, ""},
	} {
		var log bytes.Buffer
		got := memoryLimit(test.configured, func() (uint64, error) { return test.container, test.err }, slog.New(slog.NewTextHandler(&log, nil)))
		if got != test.want || (test.log == "") != (log.Len() == 0) || !strings.Contains(log.String(), test.log) {
			t.Errorf("%d in a container of %d (%v): %d %s", test.configured, test.container, test.err, got, log.String())
		}
	}
}

// TestTheCacheFitsTheMemoryLimit: what is configured is an upper bound, and who gets less than was
// asked for is told. GOMEMLIMIT comes before the configuration.
func TestTheCacheFitsTheMemoryLimit(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	for _, test := range []struct {
		maxBytes config.ByteSize
		limit    config.MemoryLimit
		want     int64
		log      string
	}{
		{64 << 20, config.MemoryUnlimited, 64 << 20, ""},
		{64 << 20, 256 << 20, 64 << 20, ""},
		{64 << 20, 115 << 20, (115<<20 - reservedMemory) / 2, "level=INFO"},
		{200 << 20, 256 << 20, (256<<20 - reservedMemory) / 2, "level=WARN"},
		{64 << 20, 16 << 20, minCacheBytes, "level=INFO"},
		{1 << 20, 16 << 20, 1 << 20, ""},
	} {
		var log bytes.Buffer
		cfg := &config.Config{Cache: config.Cache{MaxBytes: test.maxBytes}, Process: config.Process{MemoryLimit: test.limit}}
		limitMemory(cfg, slog.New(slog.NewTextHandler(&log, nil)))
		if got := cacheLimits(cfg).MaxBytes; got != test.want || (test.log == "") != (log.Len() == 0) || !strings.Contains(log.String(), test.log) {
			t.Errorf("%d within %d: %d %s", test.maxBytes, test.limit, got, log.String())
		}
	}
	t.Setenv("GOMEMLIMIT", "80MiB") // as if Go had read it at the start
	debug.SetMemoryLimit(80 << 20)
	cfg := &config.Config{Cache: config.Cache{MaxBytes: 64 << 20}, Process: config.Process{MemoryLimit: 1 << 30}}
	limitMemory(cfg, slog.New(slog.DiscardHandler))
	if got := cacheLimits(cfg).MaxBytes; got != (80<<20-reservedMemory)/2 {
		t.Errorf("GOMEMLIMIT does not come first: %d", got)
	}
}

func TestGarbageOfALargeHeapIsCollectedEarlier(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 4 << 20: 100, 8 << 20: 100, 16 << 20: 50, 64 << 20: 15, 1 << 40: 15} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d live: %d, want %d", live, got, want)
		}
	}
}
