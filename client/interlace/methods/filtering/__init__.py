"""Images taken out of a data set by what captions and pictures say (`images.filter`)."""
