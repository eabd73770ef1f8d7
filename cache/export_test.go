package cache

// RewriteSealed rewrites the sealed file at once.
func (c *Cache) RewriteSealed() error {
	return c.sealed.rewrite()
}
