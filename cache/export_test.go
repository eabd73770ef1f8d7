package cache

import "time"

// RewriteSealed rewrites the sealed file at once.
func (c *Cache) RewriteSealed() error {
	return c.sealed.rewrite()
}

// MoveClocks makes c find that the machine has slept, which the wall clock counts, and that the
// wall clock was set by set on top of that.
func (c *Cache) MoveClocks(slept, set time.Duration) {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	c.clock.asleep -= slept
	c.clock.drift -= slept + set
}
