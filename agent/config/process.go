package config

// Log is how the agent reports what it does, on standard error.
type Log struct {
	Level  string `yaml:"level" default:"info" enum:"debug|info|warn|error"`
	Format string `yaml:"format" default:"text" enum:"text|json"`
}

// Process is how the agent guards and bounds its own memory.
type Process struct {
	MemoryLimit MemoryLimit `yaml:"memoryLimit" default:"auto"`

	// Linux only; elsewhere they have no effect.
	NoDump   bool `yaml:"noDump" default:"true"`    // no core dumps, no ptrace by the same user
	MlockAll bool `yaml:"mlockall" default:"false"` // no swapping; needs a sufficient RLIMIT_MEMLOCK
}
