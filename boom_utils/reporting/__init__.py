"""Tables and figures from the files in results/ alone; never imports torch."""
