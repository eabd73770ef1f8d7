package cache

// RewriteSealed rewrites the sealed file at once.
func (c *Cache) RewriteSealed() error {
	c.sealed.running = true
	return c.sealed.rewrite()
}
