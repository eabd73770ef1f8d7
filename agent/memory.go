package agent

import (
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"secretagent/agent/config"
)

const (
	// reservedMemory is what the agent takes besides the cache: itself, answers and batches that
	// are under way, connections and their TLS, renders, a rewrite of the sealed cache.
	reservedMemory = 24 << 20

	// defaultCacheBytes is the default of cache.maxBytes.
	defaultCacheBytes = 64 << 20

	// minCacheBytes is what the cache gets however low the limit is.
	minCacheBytes = 4 << 20

	// containerReserve is the least that a container keeps for what is not Go's: buffers of the
	// kernel, and pages of files.
	containerReserve = 8 << 20
)

// limitMemory tells Go's runtime what to stay below, and how eagerly to collect garbage. GOMEMLIMIT
// and GOGC in the environment come first.
func limitMemory(cfg *config.Config, log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(cfg.Process.MemoryLimit, memlimit.FromCgroup, log))
	}
	if os.Getenv("GOGC") == "" {
		tuneGC()
	}
	limit, wanted, have := debug.SetMemoryLimit(-1), int64(cfg.Cache.MaxBytes), cacheBytes(cfg)
	switch {
	case have == wanted:
	case wanted == defaultCacheBytes: // nobody has asked for it
		log.Info("the cache is smaller than by default, to fit the memory limit", "limit", limit, "bytes", have)
	default:
		log.Warn("the cache holds less than is configured, to fit the memory limit", "limit", limit, "needed", reservedMemory+2*wanted, "bytes", have,
			"hint", "allow more memory (that of the container, process.memoryLimit, GOMEMLIMIT), or lower cache.maxBytes")
	}
}

// memoryLimit returns the limit that a configuration means; math.MaxInt64: none. container says
// what the container allows.
func memoryLimit(configured config.MemoryLimit, container func() (uint64, error), log *slog.Logger) int64 {
	switch configured {
	case config.MemoryAuto:
	case config.MemoryUnlimited:
		return math.MaxInt64
	default:
		return int64(configured)
	}
	limit, err := container()
	switch {
	case err == nil && limit < math.MaxInt64/2: // cgroup v1 writes a number also where there is none
		return int64(limit - min(max(limit/10, containerReserve), limit/2))
	case err != nil && !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported):
		log.Warn("the memory limit of the container cannot be read", "err", err, "hint", "set process.memoryLimit")
	}
	return math.MaxInt64
}

// cacheBytes returns cache.maxBytes, or what fits into the memory limit of the process: in a full
// cache half as much as it holds is garbage between two collections, see gcPercent.
func cacheBytes(cfg *config.Config) int64 {
	room := (debug.SetMemoryLimit(-1) - reservedMemory) / 2
	return min(int64(cfg.Cache.MaxBytes), max(room, minCacheBytes))
}

// batchBytes returns what batches may take, all together; 0: the default of the endpoint.
func batchBytes() int64 {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return 0
	}
	return max(limit/8, 8<<20)
}

// gcPercent returns the GOGC for a heap that has live bytes. Go's own 100 lets a full cache take
// three times its size, since what is to be overwritten outlives a collection. Hits allocate
// nothing, so that a large heap does with less; a small one, where a collection would come too
// often, keeps its 100.
func gcPercent(live uint64) int {
	const headroom = 8 << 20
	return int(min(max(100*headroom/max(live, 1), 15), 100))
}

// tuneGC sets GOGC after each collection from now on. A finalizer is what Go calls then; it costs
// nothing in between.
var tuneGC = sync.OnceFunc(func() {
	live := []gometrics.Sample{{Name: "/gc/heap/live:bytes"}}
	now := 100
	var again func(*[16]byte)
	again = func(sentinel *[16]byte) {
		gometrics.Read(live)
		if next := gcPercent(live[0].Value.Uint64()); next != now {
			debug.SetGCPercent(next)
			now = next
		}
		runtime.SetFinalizer(sentinel, again)
	}
	runtime.SetFinalizer(new([16]byte), again)
})
