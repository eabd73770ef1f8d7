package config

import (
	"errors"
	"io/fs"
	"math"
	"strconv"
	"strings"
)

// Path is the path of a file, folder or socket. In a [Config] it is absolute and clean, or
// empty when the key is unset or switched off.
type Path string

// ByteSize is a number of bytes. In YAML it is written with a unit, 64MiB, or without one for
// single bytes.
type ByteSize int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"B", 1},
}

func parseByteSize(s string) (ByteSize, error) {
	number, factor := s, int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			number, factor = n, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || n > math.MaxInt64/factor || n < math.MinInt64/factor {
		return 0, errors.New("must be a size such as 512KiB, 64MiB or 1GiB")
	}
	return ByteSize(n * factor), nil
}

// MemoryLimit is how many bytes of memory the agent is to stay below.
type MemoryLimit int64

// The values of MemoryLimit that are no size.
const (
	MemoryAuto      MemoryLimit = 0  // what the container allows
	MemoryUnlimited MemoryLimit = -1 // off
)

func parseMemoryLimit(s string) (MemoryLimit, error) {
	switch s {
	case "auto":
		return MemoryAuto, nil
	case "off":
		return MemoryUnlimited, nil
	}
	n, err := parseByteSize(s)
	if err != nil || n < 16<<20 {
		return 0, errors.New("must be auto, off, or a size of at least 16MiB")
	}
	return MemoryLimit(n), nil
}

// FileMode is the permission bits of a file. In YAML it is octal text in quotes, "0600".
type FileMode fs.FileMode

// Perm returns the mode for package os.
func (m FileMode) Perm() fs.FileMode { return fs.FileMode(m) & fs.ModePerm }

func parseFileMode(s string) (FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 || len(s) < 3 {
		return 0, errors.New(`must be permission bits in octal, in quotes, such as "0600"`)
	}
	if n == 0 {
		return 0, errors.New(`must let the owner read, as "0600" does`)
	}
	return FileMode(n), nil
}

// Account is the name or number of a user or group. Empty means that of the agent.
type Account string
